// What the edge functions of examples/ take from Deno and Supabase's runtime, and
// edge_runtime.mjs gives them.

declare const Deno: {
  env: { get(name: string): string | undefined };
  serve(handler: (request: Request) => Response | Promise<Response>): void;
};

declare const EdgeRuntime: { waitUntil(promise: Promise<unknown>): void };
