// A double of what Supabase has around an edge function, for tests on loopback: the REST layer
// (rest_double.mjs), and a runtime that starts an instance for each call. Unlike Supabase's runtime
// it has no limits, verifies no token in front of a function, and never ends an instance.
//
// Serves the functions of build/ at /functions/v1/NAME, and prints its address and that of the REST
// layer. A call's header X-Settings has settings for its instance alone. Wants a database with Supabase's roles
// in PGHOST, PGPORT and PGDATABASE, and the secret of tokens in JWT_SECRET.

import { webcrypto } from 'node:crypto';
import { createServer } from 'node:http';
import { register } from 'node:module';
import WebSocket from 'ws';
import { sign, startDouble } from './rest_double.mjs';

const secret = process.env.JWT_SECRET;
const double = await startDouble({ connection: { user: 'authenticator' }, secret, schemas: ['public', 'syncstate'], connections: 8 });
const exp = Math.floor(Date.now() / 1000) + 3600;
Object.assign(process.env, {
  SUPABASE_URL: double.url,
  SUPABASE_ANON_KEY: sign({ role: 'anon', exp }, secret),
  SUPABASE_SERVICE_ROLE_KEY: sign({ role: 'service_role', exp }, secret),
});

// npm:NAME@VERSION is the package that npm has installed.
register(`data:text/javascript,export const resolve = (name, context, next) => next(name.replace(/^npm:(.*)@\\d+$/, '$1'), context)`);

let handler, settings = {};
globalThis.Deno = { env: { get: (name) => settings[name] ?? process.env[name] }, serve: (given) => { handler = given; } };
globalThis.EdgeRuntime = { waitUntil() {} };
globalThis.crypto ??= webcrypto; // Node has it from 20 on
globalThis.WebSocket ??= WebSocket; // which supabase-js insists on, and Node has from 22 on

// One after the other, so that each gets the handler of its own.
let instances = 0, loading = Promise.resolve();
const start = (name, own) => (loading = loading.catch(() => {}).then(async () => {
  settings = own;
  await import(`./build/examples/supabase/functions/${name}/index.js?${++instances}`);
  return handler;
}));

const server = createServer(async (request, response) => {
  try {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const [, name] = /^\/functions\/v1\/([a-z-]+)/.exec(request.url);
    const { method, headers } = request;
    const instance = await start(name, JSON.parse(headers['x-settings'] ?? '{}'));
    const answer = await instance(new Request(`http://localhost${request.url}`,
      { method, headers, body: chunks.length ? Buffer.concat(chunks) : null }));
    response.writeHead(answer.status, Object.fromEntries(answer.headers)).end(Buffer.from(await answer.arrayBuffer()));
  } catch (error) {
    console.error(error);
    response.writeHead(500).end();
  }
});
server.listen(0, '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${server.address().port} ${double.url}`);
});
