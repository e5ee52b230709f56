// The `openai` npm SDK against a worker whose address is the only argument. Each check throws with what it found.
import assert from 'node:assert/strict';
import OpenAI from 'openai';

const client = new OpenAI({ baseURL: process.argv[2], apiKey: 'none', maxRetries: 0 });
const model = 'simulated';
const messages = [{ role: 'user', content: 'hello' }];
const schema = {
  type: 'object',
  properties: { city: { type: 'string' }, days: { type: 'integer', minimum: 1 } },
  required: ['city', 'days'],
  additionalProperties: false,
};

const checks = {
  async 'a stream adds up to the whole answer'() {
    const whole = await client.chat.completions.create({ model, messages, max_tokens: 8 });
    let text = '';
    let usage;
    for await (const chunk of await client.chat.completions.create({
      model,
      messages,
      max_tokens: 8,
      stream: true,
      stream_options: { include_usage: true },
    })) {
      text += chunk.choices[0]?.delta.content ?? '';
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  },
  async 'a tool that must be called is called, streamed too'() {
    const tools = [{ type: 'function', function: { name: 'weather', parameters: schema } }];
    const runner = client.chat.completions.stream({ model, messages, tools, tool_choice: 'required' });
    const [call] = (await runner.finalMessage()).tool_calls;
    assert.equal(call.function.name, 'weather');
    assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ['city', 'days']);
    const answered = [
      ...messages,
      { role: 'assistant', tool_calls: [call] },
      { role: 'tool', tool_call_id: call.id, content: 'sunny' },
    ];
    const after = await client.chat.completions.create({ model, messages: answered, tools, max_tokens: 4 });
    assert.ok(after.choices[0].message.content);
  },
  async 'an answer that must match a schema does'() {
    const answer = await client.chat.completions.create({
      model,
      messages,
      response_format: { type: 'json_schema', json_schema: { name: 'x', schema, strict: true } },
    });
    assert.equal(typeof JSON.parse(answer.choices[0].message.content).days, 'number');
  },
  async 'thinking comes apart from the answer'() {
    const answer = await client.chat.completions.create({ model, messages, thinking: { type: 'enabled' } });
    assert.ok(answer.choices[0].message.reasoning_content);
    assert.ok(!answer.choices[0].message.content.includes('think>'));
  },
  async 'responses stream their events in order'() {
    const numbers = [];
    let last;
    const events = await client.responses.create({ model, input: 'hello', reasoning: { effort: 'high' }, stream: true });
    for await (const event of events) {
      numbers.push(event.sequence_number);
      last = event;
    }
    assert.deepEqual(numbers, [...numbers.keys()]);
    assert.equal(last.type, 'response.completed');
    assert.deepEqual(last.response.output.map((item) => item.type), ['reasoning', 'message']);
  },
  async 'embeddings arrive as numbers'() {
    const made = await client.embeddings.create({ model, input: ['a', 'b'] });
    assert.equal(made.data[1].embedding.length, 64);
  },
  async 'errors are of their classes'() {
    await assert.rejects(client.chat.completions.create({ model: 'other', messages }), OpenAI.NotFoundError);
    await assert.rejects(client.chat.completions.create({ model, messages, temperature: 5 }), OpenAI.BadRequestError);
    await assert.rejects(
      client.responses.create({ model, input: 'x', previous_response_id: 'r' }),
      /this worker stores nothing/,
    );
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(`ok: ${name}`);
}
