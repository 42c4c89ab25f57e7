// The agent: it listens on a port, asks the model, calls the tool's service, and asks the model again.
// Arguments: OTLP endpoint, experiment id, address of the model, address of the tool's service.
import { createServer } from "node:http";
import { ROOT_CONTEXT, SpanStatusCode, context, propagation, trace } from "@opentelemetry/api";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-proto";
import { OpenAIInstrumentation } from "@arizeai/openinference-instrumentation-openai";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BatchSpanProcessor, NodeTracerProvider } from "@opentelemetry/sdk-trace-node";
import OpenAI from "openai";

const [endpoint, experiment, model, tool] = process.argv.slice(2);
const headers = { "x-mlflow-experiment-id": experiment };
const exporter = new OTLPTraceExporter({ url: `${endpoint}/v1/traces`, headers });
const provider = new NodeTracerProvider({
  resource: resourceFromAttributes({ "service.name": "agent-node" }),
  spanProcessors: [new BatchSpanProcessor(exporter)],
});
provider.register();
const instrumentation = new OpenAIInstrumentation({ tracerProvider: provider });
instrumentation.manuallyInstrument(OpenAI);
const client = new OpenAI({ baseURL: model, apiKey: "none" });
const tracer = trace.getTracer("agent");
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

async function callTool(call) {
  const carrier = {};
  propagation.inject(context.active(), carrier);
  const response = await fetch(tool, { method: "POST", headers: carrier, body: call.function.arguments });
  return { role: "tool", tool_call_id: call.id, content: await response.text() };
}

async function answer(question) {
  const messages = [{ role: "user", content: question }];
  for (;;) {
    const completion = await client.chat.completions.create({ model: "gpt-4o-mini", messages, tools: [weather] });
    const { message } = completion.choices[0];
    if (!message.tool_calls?.length) return message.content;
    messages.push(message, ...(await Promise.all(message.tool_calls.map(callTool))));
  }
}

const server = createServer(async (request, response) => {
  let question = "";
  for await (const chunk of request) question += chunk;
  const parent = propagation.extract(ROOT_CONTEXT, request.headers);
  await tracer.startActiveSpan("agent", {}, parent, async (span) => {
    span.setAttributes({ "openinference.span.kind": "AGENT", "input.value": question });
    try {
      const text = await answer(question);
      span.setAttribute("output.value", text);
      response.end(text);
    } catch (error) {
      span.setStatus({ code: SpanStatusCode.ERROR, message: String(error) });
      response.writeHead(500).end(String(error));
    }
    span.end();
  });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
process.on("SIGTERM", async () => {
  server.close();
  await provider.shutdown();
  process.exit(0);
});
