SET 'processing.guarantee' = 'exactly_once_v2';
SET 'auto.offset.reset' = 'earliest';

CREATE STREAM scores (
  session_key VARCHAR KEY,
  session VARCHAR,
  kind VARCHAR,
  score DOUBLE,
  severity VARCHAR,
  events INTEGER,
  unknown_events INTEGER,
  first_event_time VARCHAR,
  last_event_time VARCHAR,
  closed_by VARCHAR,
  reason STRUCT<text VARCHAR, family VARCHAR>,
  top_events ARRAY<STRUCT<`offset` BIGINT, template VARCHAR, surprise DOUBLE>>,
  source STRUCT<topic VARCHAR, `partition` INTEGER, first_offset BIGINT, last_offset BIGINT, cause_offset BIGINT>
) WITH (KAFKA_TOPIC = 'log-anomaly-scores', KEY_FORMAT = 'KAFKA', VALUE_FORMAT = 'JSON');

-- A table of what is anomalous: how many sessions of each severity, in windows of ten minutes.
CREATE TABLE anomalies AS
  SELECT severity, COUNT(*) AS sessions, MAX(score) AS highest
  FROM scores
  WINDOW TUMBLING (SIZE 10 MINUTES)
  WHERE kind = 'final' AND severity <> 'normal'
  GROUP BY severity;
