// What every client of node is put through: the same as in harness.py.
import { readFileSync } from 'node:fs'

export const url = process.env.HAGANE_CLIENT_URL ?? 'http://127.0.0.1:8000'
export const model = process.env.HAGANE_CLIENT_MODEL ?? 'hagane-mini'
export const key = 'none-is-asked-for'
export const question = 'Say hello in one short sentence.'
export const weather = 'What is the weather in Tokyo? Use the tool get_weather.'
export const personText = 'Ada is 36 years old. Give her name and age.'
export const object = (properties) => ({
  type: 'object', properties, required: Object.keys(properties), additionalProperties: false,
})
export const calls = []

export function getWeather({ city }) {
  calls.push(city)
  return `It is sunny and 23 degrees in ${city}.`
}

const checks = {
  chat: (text) => typeof text === 'string' && text.trim() !== '',
  // Two turns: a call, and after its result words or another call, as small models do.
  tools: (text) => calls.every((city) => typeof city === 'string') &&
    (calls.length > 1 || (calls.length === 1 && !!text)),
  structured: (person) => typeof person.name === 'string' && Number.isInteger(person.age),
  embeddings: (vector) => vector.length > 1 && vector.every((x) => typeof x === 'number'),
}

export async function run(packages, functions) {
  const results = {}
  const wanted = (process.env.HAGANE_CLIENT_CHECKS ?? '').split(' ').filter(Boolean)
  for (const [name, check] of Object.entries(functions)) {
    if (wanted.length > 0 && !wanted.includes(name)) continue
    calls.length = 0
    try {
      const value = await check()
      results[name] = checks[name](value) ? 'pass' : `got ${JSON.stringify(value)}`.slice(0, 200)
    } catch (error) {
      results[name] = `${error.name}: ${error.message}`.slice(0, 400)
    }
  }
  const versions = {}
  for (const name of packages) {
    versions[name] = JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version
  }
  console.log('\n' + JSON.stringify({ versions, results }))
  process.exit(0)
}
