// The AI SDK with its provider for OpenAI, by its default: Responses.
import { createOpenAI } from '@ai-sdk/openai'
import { runWith } from './ai_sdk.mjs'
import * as h from './harness.mjs'

const provider = createOpenAI({ baseURL: `${h.url}/v1`, apiKey: h.key })
await runWith(['ai', '@ai-sdk/openai'], provider(h.model), provider.embedding(h.model))
