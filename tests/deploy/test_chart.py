"""The Helm chart: what it renders is valid, and its worker starts with what the chart gives it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.dockerfile import ROOT, image, words
from tests.deploy.tools import SCHEMAS, run_tool
from tests.worker.command_line import parse
from worker.settings.document import Settings, load_settings

CHART = ROOT / "deploy" / "helm" / "logmamba"
PORT = Settings().observability.port
POD = "shop-logmamba-2"

LEAST: dict[str, Any] = {
    "settings": {"kafka": {"bootstrap.servers": "kafka:9092"}},
    "checkpoint": {"volume": {"persistentVolumeClaim": {"claimName": "checkpoints"}}},
}
MOST: dict[str, Any] = {
    "image": {"repository": "images.internal/logmamba", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "images"}],
    "settings": {
        "application_id": "shop",
        "kafka": {
            "bootstrap.servers": "kafka-0:9093,kafka-1:9093",
            "security.protocol": "SASL_SSL",
            "sasl.mechanisms": "SCRAM-SHA-512",
            "sasl.username": "${KAFKA_USER}",
            "socket.receive.buffer.bytes": 16_777_216,
        },
        "output": {"topic": "anomalies"},
        "input": {"topics": ["orders", "carts"], "max_line_bytes": 16_777_216, "start": "latest"},
        "sessions": {"key": {"regex": "order=(\\d+)"}, "max_open": 1_000_000},
        "model": {"score_cache": 100_000_000},
        "scoring": {"warning": 0.5, "adaptive": {"target_rate": 0.001}},
    },
    "checkpoint": {"volume": {"hostPath": {"path": "/srv/checkpoints"}}, "path": "shop/7"},
    "kafkaSecret": {"name": "kafka", "properties": ["sasl.password"]},
    "env": [{"name": "KAFKA_USER", "value": "logmamba"}],
    "terminationGracePeriodSeconds": 100,
    "gpu": {"enabled": True, "count": 2},
    "podAnnotations": {"team": "shop"},
    "podLabels": {"team": "shop"},
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "networkPolicy": {
        "enabled": True,
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "kafka": {"ports": [9093], "to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "alert": {
        "enabled": True,
        "settings": {
            "receivers": {
                "chat": {"type": "slack", "url": "${SLACK_URL}"},
                "oncall": {"type": "pagerduty", "routing_key_file": "/run/secrets/alert/pagerduty"},
            }
        },
        "secret": "receivers",
        "env": [{"name": "SLACK_URL", "valueFrom": {"secretKeyRef": {"name": "receivers", "key": "slack"}}}],
    },
    "adapt": {"enabled": True, "schedule": "5 4 * * 1-5", "timeZone": "Europe/Berlin", "args": ["--days=5"]},
    "keda": {"enabled": True, "authenticationRef": "kafka"},
}


def render(folder: Path, values: dict[str, Any], *more: str) -> str:
    file = folder / "values.yaml"
    file.write_text(json.dumps(values))
    done = run_tool("helm", "template", "shop", CHART, "--kube-version", "1.34.0", "--values", file, *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def resources(text: str) -> dict[str, dict[str, Any]]:
    """What was rendered, by kind: there is one of each."""
    found = [each for each in yaml.safe_load_all(text) if each]
    assert len(found) == len({each["kind"] for each in found})
    return {each["kind"]: each for each in found}


def settings_of(rendered: dict[str, dict[str, Any]], folder: Path) -> Settings:
    """The settings as a worker in a pod reads them."""
    text = rendered["ConfigMap"]["data"]["worker.yaml"]
    secrets = folder / "secrets"
    secrets.mkdir(exist_ok=True)
    (secrets / "sasl.password").write_text("hidden\n")
    file = folder / "worker.yaml"
    file.write_text(text.replace("/run/secrets/kafka", str(secrets)))
    return load_settings(file, (), {"POD_NAME": POD, "KAFKA_USER": "logmamba"})


def container(rendered: dict[str, dict[str, Any]]) -> dict[str, Any]:
    [only] = rendered["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


@pytest.mark.parametrize("values", [LEAST, MOST], ids=["least", "most"])
def test_the_chart_has_no_findings_and_what_it_renders_is_valid(tmp_path: Path, values: dict[str, Any]) -> None:
    rendered = render(tmp_path, values)
    linted = run_tool("helm", "lint", "--strict", CHART, "--values", tmp_path / "values.yaml")
    assert linted.returncode == 0, linted.stdout + linted.stderr
    # Those that come with operators have no schemas here.
    location = f"{SCHEMAS}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    skipped = "ServiceMonitor,PrometheusRule,ScaledObject"
    judged = run_tool(
        "kubeconform", "-strict", "-summary", "-schema-location", location, "-skip", skipped, "-", given=rendered
    )
    assert judged.returncode == 0, judged.stdout
    kinds = resources(rendered)
    assert f"Valid: {len(kinds.keys() - set(skipped.split(',')))}, Invalid: 0, Errors: 0" in judged.stdout


def test_a_pod_keeps_its_name_as_the_worker_s_and_as_the_group_s_member(tmp_path: Path) -> None:
    rendered = resources(render(tmp_path, LEAST))
    settings = settings_of(rendered, tmp_path)
    assert settings.instance == POD
    assert settings.kafka["group.instance.id"] == POD
    [name] = [each for each in container(rendered)["env"] if each["name"] == "POD_NAME"]
    assert name["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert rendered["StatefulSet"]["spec"]["serviceName"] == rendered["Service"]["metadata"]["name"]


def test_settings_reach_the_worker_as_they_are_written(tmp_path: Path) -> None:
    settings = settings_of(resources(render(tmp_path, MOST)), tmp_path)
    assert settings.application_id == "shop"
    assert settings.input.topics == ("orders", "carts")
    assert settings.input.max_line_bytes == 16_777_216
    assert settings.sessions.max_open == 1_000_000
    assert settings.sessions.key.value == "order=(\\d+)"
    assert settings.scoring.adaptive is not None
    assert settings.kafka["sasl.username"] == "logmamba"


def test_a_release_is_an_application_of_its_own(tmp_path: Path) -> None:
    assert settings_of(resources(render(tmp_path, LEAST)), tmp_path).application_id == "shop-logmamba"


def test_a_secret_is_a_file_and_stands_in_nothing_that_is_rendered(tmp_path: Path) -> None:
    rendered = resources(render(tmp_path, MOST))
    assert settings_of(rendered, tmp_path).kafka["sasl.password"] == "hidden"
    mounted = {each["name"]: each["mountPath"] for each in container(rendered)["volumeMounts"]}
    assert mounted["kafka-secret"] == "/run/secrets/kafka"
    volumes = {each["name"]: each for each in rendered["StatefulSet"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["kafka-secret"]["secret"]["secretName"] == "kafka"


def test_the_checkpoint_is_where_its_volume_is_mounted(tmp_path: Path) -> None:
    for values, path in ((LEAST, "/checkpoint"), (MOST, "/checkpoint/shop/7")):
        rendered = resources(render(tmp_path, values))
        assert str(settings_of(rendered, tmp_path).model.checkpoint) == path
        assert {"name": "checkpoint", "mountPath": "/checkpoint", "readOnly": True} in container(rendered)[
            "volumeMounts"
        ]


def test_a_pod_has_more_time_to_stop_than_its_worker_takes(tmp_path: Path) -> None:
    for values in (LEAST, MOST):
        rendered = resources(render(tmp_path, values))
        grace_s = rendered["StatefulSet"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace_s * 1000 - settings_of(rendered, tmp_path).worker.shutdown_timeout_ms == 10_000


def test_probes_and_ports_are_those_of_the_endpoint(tmp_path: Path) -> None:
    rendered = resources(render(tmp_path, MOST))
    worker = container(rendered)
    settings = settings_of(rendered, tmp_path)
    assert (settings.observability.address, settings.observability.port) == ("0.0.0.0", PORT)
    assert worker["ports"] == [{"name": "http", "containerPort": PORT}]
    assert {name: worker[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")} == {
        "startupProbe": {"path": "/healthz", "port": "http"},
        "livenessProbe": {"path": "/healthz", "port": "http"},
        "readinessProbe": {"path": "/readyz", "port": "http"},
    }
    assert rendered["Service"]["spec"]["ports"] == [{"name": "http", "port": PORT, "targetPort": "http"}]
    [scraped] = rendered["ServiceMonitor"]["spec"]["endpoints"]
    assert (scraped["port"], scraped["path"]) == ("http", "/metrics")
    [relabeled] = scraped["relabelings"]
    assert relabeled["replacement"].startswith("logmamba")


def test_a_pod_runs_the_image_as_it_is_meant_to_be_run(tmp_path: Path) -> None:
    rendered = resources(render(tmp_path, LEAST))
    worker, pod = container(rendered), rendered["StatefulSet"]["spec"]["template"]["spec"]
    assert worker["args"] == words(image()["CMD"])
    assert worker["securityContext"]["readOnlyRootFilesystem"]
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == image()["USER"]
    assert {each["mountPath"] for each in worker["volumeMounts"]} >= {"/tmp", "/etc/logmamba", "/checkpoint"}


def test_a_gpu_takes_the_image_with_cuda_and_is_the_worker_s_device(tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    rendered = resources(render(tmp_path, MOST))
    assert container(rendered)["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert container(rendered)["image"] == f"images.internal/logmamba:{version}-cuda"
    assert settings_of(rendered, tmp_path).model.device == "cuda"
    assert container(resources(render(tmp_path, LEAST)))["image"] == f"logmamba:{version}-cpu"


def test_what_selects_pods_selects_the_worker_s(tmp_path: Path) -> None:
    rendered = resources(render(tmp_path, MOST))
    labels = rendered["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        rendered["StatefulSet"]["spec"]["selector"]["matchLabels"],
        rendered["Service"]["spec"]["selector"],
        rendered["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        rendered["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    monitored = rendered["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= rendered["Service"]["metadata"]["labels"].items()


def test_alert_knows_what_it_shares_with_the_workers_and_nothing_takes_it_for_one(tmp_path: Path) -> None:
    rendered = resources(render(tmp_path, MOST))
    workers, key = settings_of(rendered, tmp_path), "0123456789abcdef" * 2
    (tmp_path / "secrets" / "pagerduty").write_text(key)
    text = rendered["ConfigMap"]["data"]["alert.yaml"]
    file = tmp_path / "alert.yaml"
    file.write_text(
        text.replace("/run/secrets/kafka", str(tmp_path / "secrets")).replace(
            "/run/secrets/alert", str(tmp_path / "secrets")
        )
    )
    settings = load_settings(
        file, (), {"KAFKA_USER": "logmamba", "SLACK_URL": "https://hooks.slack.com/services/T/B/X"}
    )
    assert settings.application_id == workers.application_id
    assert settings.output == workers.output
    assert (
        settings.kafka.items()
        == {name: value for name, value in workers.kafka.items() if name != "group.instance.id"}.items()
    )
    assert settings.alert.receivers["oncall"].routing_key == key
    assert workers.alert.receivers == {}
    pod = rendered["Deployment"]["spec"]["template"]
    [alert] = pod["spec"]["containers"]
    assert alert["args"] == ["alert", "--config", "/etc/logmamba/alert.yaml"]
    assert alert["image"].endswith("-cpu")
    assert {each["name"] for each in alert["env"]} == {"KAFKA_USER", "SLACK_URL"}
    assert {each["name"] for each in alert["volumeMounts"]} == {each["name"] for each in pod["spec"]["volumes"]}
    labels = pod["metadata"]["labels"]
    assert rendered["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for kind in ("StatefulSet", "PodDisruptionBudget"):
        assert not rendered[kind]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert not rendered["Service"]["spec"]["selector"].items() <= labels.items()


def test_adaptations_write_where_the_workers_read_one_at_a_time_and_never_again_after_one_failed(
    tmp_path: Path,
) -> None:
    rendered = resources(render(tmp_path, MOST))
    job = rendered["CronJob"]["spec"]
    assert (job["schedule"], job["timeZone"], job["concurrencyPolicy"]) == ("5 4 * * 1-5", "Europe/Berlin", "Forbid")
    assert job["jobTemplate"]["spec"]["backoffLimit"] == 0
    pod = job["jobTemplate"]["spec"]["template"]
    [adapt] = pod["spec"]["containers"]
    assert pod["spec"]["restartPolicy"] == "Never"
    assert adapt["image"].endswith("-cpu")
    parse([str(each) for each in adapt["args"]])  # the command line takes them
    assert adapt["args"][-1] == "--days=5"
    assert "--exit-zero" in adapt["args"], "a job that learns nothing, for a reason, has not failed"
    mounts = {each["name"]: each for each in adapt["volumeMounts"]}
    assert mounts.keys() == {each["name"] for each in pod["spec"]["volumes"]}
    assert not mounts["checkpoint"].get("readOnly", False)
    place = Path(str(settings_of(rendered, tmp_path).model.checkpoint))
    assert place.parent.is_relative_to(mounts["checkpoint"]["mountPath"])  # where versions are kept
    [worker] = [each for each in container(rendered)["volumeMounts"] if each["name"] == "checkpoint"]
    assert (worker["mountPath"], worker["readOnly"]) == (mounts["checkpoint"]["mountPath"], True)
    volumes = {each["name"]: each for each in rendered["StatefulSet"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["checkpoint"] in pod["spec"]["volumes"]
    assert not rendered["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert "CronJob" not in resources(render(tmp_path, LEAST))


def test_the_rules_of_the_chart_are_those_that_are_tested(tmp_path: Path) -> None:
    """`cp config/monitoring/alerts.yaml deploy/helm/logmamba` makes them so: a chart holds all that it needs."""
    rules = yaml.safe_load((ROOT / "config" / "monitoring" / "alerts.yaml").read_text())
    assert resources(render(tmp_path, MOST))["PrometheusRule"]["spec"] == rules
    assert "PrometheusRule" not in resources(render(tmp_path, LEAST))


def test_nobody_reaches_a_worker_unless_a_policy_names_them(tmp_path: Path) -> None:
    closed = resources(render(tmp_path, LEAST, "--set", "networkPolicy.enabled=true"))["NetworkPolicy"]["spec"]
    assert closed["policyTypes"] == ["Ingress", "Egress"]
    assert closed["ingress"] == []
    assert [port["port"] for rule in closed["egress"] for port in rule["ports"]] == [53, 53, 9092]


def test_the_lag_of_each_topic_sets_how_many_workers_there_are(tmp_path: Path) -> None:
    rendered = resources(render(tmp_path, MOST))
    assert "replicas" not in rendered["StatefulSet"]["spec"]  # or each upgrade would undo what KEDA has set
    scaled, settings = rendered["ScaledObject"]["spec"], settings_of(rendered, tmp_path)
    assert scaled["scaleTargetRef"]["name"] == rendered["StatefulSet"]["metadata"]["name"]
    triggers = [each["metadata"] for each in scaled["triggers"]]
    assert [each["topic"] for each in triggers] == list(settings.input.topics)
    assert {each["consumerGroup"] for each in triggers} == {settings.group_id}
    assert {each["bootstrapServers"] for each in triggers} == {settings.kafka["bootstrap.servers"]}
    assert {each["offsetResetPolicy"] for each in triggers} == {settings.input.start}
    assert all(isinstance(value, str) for each in triggers for value in each.values())  # as KEDA wants them


def test_other_settings_are_other_pods(tmp_path: Path) -> None:
    def checksum(*more: str) -> str:
        template = resources(render(tmp_path, LEAST, *more))["StatefulSet"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/settings"])

    assert checksum() == checksum()
    assert checksum() != checksum("--set", "settings.scoring.warning=0.6")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("settings.worker.instance=x", "/settings/worker/instance"),
        ("settings.worker.shutdown_timeout=1h", "/settings/worker/shutdown_timeout"),
        ("settings.observability.port=1", "/settings/observability/port"),
        ("settings.model.checkpoint=x", "/settings/model/checkpoint"),
        ("settings.kafka.group\\.instance\\.id=x", "/settings/kafka/group.instance.id"),
        ("kafkaSecret.properties={sasl.password}", "/kafkaSecret/name"),
        ("terminationGracePeriodSeconds=10", "/terminationGracePeriodSeconds"),
        ("replica=3", "replica"),
        ("alert.enabled=true", "/alert/settings"),
        ("settings.kafka=null", "settings.kafka.bootstrap.servers is missing; allowed: host:port, with commas"),
        ("adapt.enabled=true", "adapt.enabled without checkpoint.path"),
        ("adapt.schedule=daily", "/adapt/schedule"),
        ("checkpoint.volume=null", "checkpoint.volume is missing; allowed: a source as in a pod's volumes"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_place(tmp_path: Path, given: str, told: str) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(json.dumps(LEAST))
    done = run_tool("helm", "template", "shop", CHART, "--kube-version", "1.34.0", "--values", file, "--set", given)
    assert done.returncode == 1
    assert told in done.stderr


def test_the_chart_is_of_the_worker_s_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version


def test_the_values_that_are_documented_load_without_any_tool() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert values.keys() | {"global"} == schema["properties"].keys()
