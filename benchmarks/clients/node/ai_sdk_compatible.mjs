// The AI SDK with its provider for servers like OpenAI's: chat.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { runWith } from './ai_sdk.mjs'
import * as h from './harness.mjs'

const provider = createOpenAICompatible({
  name: 'hagane', baseURL: `${h.url}/v1`, apiKey: h.key, supportsStructuredOutputs: true,
})
await runWith(
  ['ai', '@ai-sdk/openai-compatible'], provider(h.model), provider.textEmbeddingModel(h.model),
)
