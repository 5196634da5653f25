// What programs do that use JavaScript clients. `make clients` runs it where these clients are installed:
// node --input-type=module - URL KEY CASE … < node.mjs     # prints a JSON object for each case

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [baseURL, apiKey, ...names] = process.argv.slice(2);

// As in ticket.py.
const Ticket = z.object({
  title: z.string(),
  priority: z.enum(["low", "normal", "urgent"]),
  hours: z.int().describe("Work that it takes, in hours."),
  tags: z.array(z.string()),
  due: z.iso.date(),
  reporter: z.email(),
  assignee: z.string().nullable(),
});
const Plan = z.looseObject({ route_plan: z.array(z.string()), difficulty: z.string() });

const system = "You file tickets for a help desk.";
const user = "Ada (ada@example.com): the printer on floor 3 jams on every page. We need it by 2026-12-01.";
const messages = [
  { role: "system", content: system },
  { role: "user", content: user },
];
const task = "Prove that the sum of two odd numbers is even, then check it in Python.";
const budget = 200;

const openai = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 280_000 });
const tools = [zodFunction({ name: "file", parameters: Ticket })];
const ticketTool = { model: "router", messages, max_tokens: budget, tool_choice: "required", tools };

// Without the flag it sends no schema at all.
const provider = createOpenAICompatible({ baseURL, apiKey, name: "router", supportsStructuredOutputs: true });
const model = provider("router");
const ask = { system, prompt: user, maxOutputTokens: budget, maxRetries: 0 };
const ticket = { ...ask, output: Output.object({ schema: Ticket, name: "ticket" }) };

const cases = {
  openai_js_parse: async () => {
    const response_format = zodResponseFormat(Ticket, "ticket");
    const answer = await openai.chat.completions.parse({ model: "router", messages, response_format, max_tokens: budget });
    return answer.choices[0].message.parsed;
  },
  openai_js_plan: async () => {
    const answer = await openai.chat.completions.create({ model: "router", messages: [{ role: "user", content: task }] });
    return Plan.parse(JSON.parse(answer.choices[0].message.content));
  },
  openai_js_tools: async () => {
    const answer = await openai.chat.completions.parse(ticketTool);
    return answer.choices[0].message.tool_calls[0].function.parsed_arguments;
  },
  openai_js_tools_stream: async () => {
    const answer = await openai.chat.completions.stream(ticketTool).finalChatCompletion();
    return Ticket.parse(JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments));
  },
  ai_sdk_object: async () => (await generateText({ ...ticket, model })).output,
  ai_sdk_object_stream: async () => {
    const { partialOutputStream, output } = streamText({ ...ticket, model });
    let pieces = 0;
    for await (const _ of partialOutputStream) pieces++;
    if (pieces < 2) throw new Error(`the object came in ${pieces} piece(s)`);
    return await output;
  },
  ai_sdk_openai: async () =>
    (await generateText({ ...ticket, model: createOpenAI({ baseURL, apiKey }).chat("router") })).output,
  ai_sdk_plan: async () => {
    const { text } = await generateText({ model, prompt: task, maxRetries: 0 });
    return Plan.parse(JSON.parse(text));
  },
  ai_sdk_tools: async () => {
    const tools = { file: tool({ description: "Files a ticket.", inputSchema: Ticket }) };
    const { toolCalls } = await generateText({ ...ask, model, tools, toolChoice: "required" });
    return toolCalls[0].input;
  },
};

for (const name of names) {
  const start = performance.now();
  const said = { case: name };
  try {
    said.object = await cases[name]();
  } catch (error) {
    said.error = `${error.name}: ${error.message}`;
  }
  said.seconds = (performance.now() - start) / 1000;
  console.log(JSON.stringify(said));
}
