// The openai package of node: chat and Responses, its tool runner, parsed answers, embeddings.
import OpenAI from 'openai'
import { zodResponseFormat } from 'openai/helpers/zod'
import { z } from 'zod'
import * as h from './harness.mjs'

const client = new OpenAI({ baseURL: `${h.url}/v1`, apiKey: h.key })
const ask = (content) => ({ model: h.model, messages: [{ role: 'user', content }], max_tokens: 80 })

async function chat() {
  await client.responses.create({ model: h.model, input: h.question, max_output_tokens: 30 })
  const answer = await client.chat.completions.create(ask(h.question))
  return answer.choices[0].message.content
}

async function tools() {
  const runner = client.chat.completions.runTools({
    ...ask(h.weather),
    temperature: 0,
    tools: [{
      type: 'function',
      function: {
        name: 'get_weather',
        description: 'The weather in a city now.',
        parameters: h.object({ city: { type: 'string' } }),
        function: h.getWeather,
        parse: JSON.parse,
      },
    }],
  })
  return runner.finalContent()
}

async function structured() {
  const Person = z.object({ name: z.string(), age: z.number().int() })
  const answer = await client.chat.completions.parse({
    ...ask(h.personText), response_format: zodResponseFormat(Person, 'person'),
  })
  return answer.choices[0].message.parsed
}

async function embeddings() {
  const answer = await client.embeddings.create({ model: h.model, input: 'hello' })
  return answer.data[0].embedding
}

await h.run(['openai'], { chat, tools, structured, embeddings })
