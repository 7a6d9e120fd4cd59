// The AI SDK, common to both of its providers for such servers.
import { embed, generateText, Output, stepCountIs, streamText, tool } from 'ai'
import { z } from 'zod'
import * as h from './harness.mjs'

export async function runWith(packages, chatModel, embeddingModel) {
  const settings = { model: chatModel, temperature: 0, maxOutputTokens: 80 }

  async function chat() {
    return await streamText({ ...settings, prompt: h.question }).text
  }

  async function tools() {
    const getWeather = tool({
      description: 'The weather in a city now.',
      inputSchema: z.object({ city: z.string() }),
      execute: async (input) => h.getWeather(input),
    })
    const answer = await generateText({
      ...settings, prompt: h.weather, tools: { get_weather: getWeather }, stopWhen: stepCountIs(3),
    })
    return answer.text
  }

  async function structured() {
    const schema = z.object({ name: z.string(), age: z.number().int() })
    const answer = await generateText({
      ...settings, prompt: h.personText, output: Output.object({ schema }),
    })
    return answer.output
  }

  async function embeddings() {
    return (await embed({ model: embeddingModel, value: 'hello' })).embedding
  }

  await h.run(packages, { chat, tools, structured, embeddings })
}
