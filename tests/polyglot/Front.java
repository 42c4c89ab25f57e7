import io.opentelemetry.api.common.AttributeKey;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanKind;
import io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator;
import io.opentelemetry.context.Context;
import io.opentelemetry.context.Scope;
import io.opentelemetry.exporter.otlp.http.trace.OtlpHttpSpanExporter;
import io.opentelemetry.sdk.OpenTelemetrySdk;
import io.opentelemetry.sdk.resources.Resource;
import io.opentelemetry.sdk.trace.SdkTracerProvider;
import io.opentelemetry.sdk.trace.export.BatchSpanProcessor;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** The root of the trace: asks the agent. Arguments: OTLP endpoint, experiment id, address of the agent, question. */
public final class Front {
  public static void main(String[] arguments) throws Exception {
    var exporter =
        OtlpHttpSpanExporter.builder()
            .setEndpoint(arguments[0] + "/v1/traces")
            .addHeader("x-mlflow-experiment-id", arguments[1])
            .build();
    var resource = Resource.getDefault().toBuilder().put("service.name", "front-java").build();
    var provider =
        SdkTracerProvider.builder()
            .setResource(resource)
            .addSpanProcessor(BatchSpanProcessor.builder(exporter).build())
            .build();
    var tracer = OpenTelemetrySdk.builder().setTracerProvider(provider).build().getTracer("front");
    Span root = tracer.spanBuilder("ask").setSpanKind(SpanKind.SERVER).startSpan();
    root.setAttribute(AttributeKey.stringKey("session.id"), "session-1");
    try (Scope ignored = root.makeCurrent()) {
      System.out.println(ask(tracer.spanBuilder("POST").setSpanKind(SpanKind.CLIENT).startSpan(), arguments));
    } finally {
      root.end();
      provider.close();
    }
  }

  private static String ask(Span call, String[] arguments) throws Exception {
    var request =
        HttpRequest.newBuilder(URI.create(arguments[2])).POST(HttpRequest.BodyPublishers.ofString(arguments[3]));
    W3CTraceContextPropagator.getInstance()
        .inject(Context.current().with(call), request, (carrier, name, value) -> carrier.header(name, value));
    try {
      return HttpClient.newHttpClient().send(request.build(), HttpResponse.BodyHandlers.ofString()).body();
    } finally {
      call.end();
    }
  }
}
