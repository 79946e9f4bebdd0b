{{- define "logmamba.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "logmamba.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "logmamba.labels" -}}
{{ include "logmamba.selector" . }}
{{ include "logmamba.commonLabels" . }}
{{- end -}}

{{- define "logmamba.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Those of `logmamba alert`, which the Service and the workers' policies must not take for workers. */}}
{{- define "logmamba.alertSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-alert
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "logmamba.alertLabels" -}}
{{ include "logmamba.alertSelector" . }}
{{ include "logmamba.commonLabels" . }}
{{- end -}}

{{/* Likewise, those of `logmamba adapt`. */}}
{{- define "logmamba.adaptLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-adapt
app.kubernetes.io/instance: {{ .Release.Name }}
{{ include "logmamba.commonLabels" . }}
{{- end -}}

{{- define "logmamba.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "logmamba.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "logmamba.kafkaSecretVolume" -}}
{{- with .Values.kafkaSecret.name -}}
- name: kafka-secret
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end -}}
{{- end -}}

{{- define "logmamba.image" -}}
{{- $variant := ternary "cuda" "cpu" .Values.gpu.enabled -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $variant) }}
{{- end -}}

{{- define "logmamba.applicationId" -}}
{{ .Values.settings.application_id | default (include "logmamba.fullname" .) }}
{{- end -}}

{{- define "logmamba.bootstrap" -}}
{{- $kafka := .Values.settings.kafka | default dict -}}
{{ required "settings.kafka.bootstrap.servers is missing; allowed: host:port, with commas" (get $kafka "bootstrap.servers") }}
{{- end -}}

{{/* What the chart knows of how clients reach Kafka; texts alone, since numbers do not outlive fromYaml. */}}
{{- define "logmamba.kafka" -}}
{{- $kafka := dict "bootstrap.servers" (include "logmamba.bootstrap" .) -}}
{{- range .Values.kafkaSecret.properties -}}
{{- $_ := set $kafka (printf "%s_file" .) (printf "/run/secrets/kafka/%s" .) -}}
{{- end -}}
{{ toYaml $kafka }}
{{- end -}}

{{/* The settings of `logmamba alert`: of the worker's what both need, and the section alert. */}}
{{- define "logmamba.alertSettings" -}}
{{- $kafka := include "logmamba.kafka" . | fromYaml -}}
{{ dict
  "application_id" (include "logmamba.applicationId" .)
  "kafka" (mustMergeOverwrite (deepCopy .Values.settings.kafka) $kafka)
  "output" (.Values.settings.output | default dict)
  "observability" (.Values.settings.observability | default dict)
  "alert" .Values.alert.settings
  | toYaml }}
{{- end -}}

{{/* The worker's settings: those of the values, and what the chart knows better. */}}
{{- define "logmamba.settings" -}}
{{- $path := printf "/checkpoint/%s" .Values.checkpoint.path | trimSuffix "/" -}}
{{- $kafka := set (include "logmamba.kafka" . | fromYaml) "group.instance.id" "${POD_NAME}" -}}
{{- $model := dict "checkpoint" $path -}}
{{- if .Values.gpu.enabled -}}
{{- $_ := set $model "device" "cuda" -}}
{{- end -}}
{{- $stop := sub (int .Values.terminationGracePeriodSeconds) 10 -}}
{{- $own := dict
  "application_id" (include "logmamba.applicationId" .)
  "kafka" $kafka
  "model" $model
  "worker" (dict "instance" "${POD_NAME}" "shutdown_timeout" (printf "%ds" $stop))
  "observability" (dict "address" "0.0.0.0" "port" 9108)
-}}
{{ mustMergeOverwrite (deepCopy .Values.settings) $own | toYaml }}
{{- end -}}
