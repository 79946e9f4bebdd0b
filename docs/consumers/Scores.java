import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/** Prints anomalous sessions; start it again and it goes on where it was. */
public final class Scores {
    public static void main(String[] arguments) throws Exception {
        Map<String, Object> properties = Map.of(
                "bootstrap.servers", arguments[0],
                "group.id", arguments[2],
                "isolation.level", "read_committed", // each final score once, whatever happened to a worker
                "auto.offset.reset", "earliest",
                "enable.auto.commit", false);
        ObjectMapper json = new ObjectMapper();
        try (var consumer = new KafkaConsumer<>(properties, new StringDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(List.of(arguments[1]));
            while (true) {
                for (ConsumerRecord<String, byte[]> message : consumer.poll(Duration.ofSeconds(1))) {
                    JsonNode record = json.readTree(message.value());
                    if (record.path("schema").asText().equals("logmamba.score/1")
                            && !record.path("severity").asText().equals("normal")) {
                        handle(record);
                    }
                }
                consumer.commitSync(); // after handling: a crash repeats records rather than losing them
            }
        }
    }

    private static void handle(JsonNode record) {
        JsonNode source = record.path("source");
        System.out.println(String.join("\t",
                record.path("severity").asText(),
                record.path("kind").asText(),
                record.path("score").asText(),
                record.path("session").asText(),
                source.path("topic").asText() + "/" + source.path("partition").asText()
                        + "@" + source.path("first_offset").asText(),
                record.path("top_events").path(0).path("template").asText()));
    }
}
