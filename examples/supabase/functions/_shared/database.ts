// What the functions share: the database, their settings, and a keyed hash.
// Copy examples/syncstate-types.ts to this directory, too.

import { createClient } from 'npm:@supabase/supabase-js@2';
import type { Database as Syncstate, Json, SyncSource } from './syncstate-types.ts';

type Grant = { user_id: string; account: string; refresh_token: string };

/** The schema syncstate, and what items.sql and edge_functions.sql add to yours. */
type Database = Syncstate & {
  public: {
    Tables: { google_grants: { Row: Grant; Insert: Grant; Update: Partial<Grant>; Relationships: [] } };
    Views: { [_ in never]: never };
    Functions: {
      save_page: {
        Args: {
          user_id: string; account: string; source: SyncSource; resource: string; lease: number;
          found: Json; full_sync: number | null; done: number; page_token: string | null; sync_token: string | null; is_list: boolean;
        };
        Returns: boolean;
      };
    };
  };
};

/** A setting of the function; one without a default must be there. */
export function env(name: string, byDefault?: string): string {
  const value = Deno.env.get(name) || byDefault;
  if (!value) throw new Error(`${name} is not set`);
  return value;
}

const options = { auth: { persistSession: false, autoRefreshToken: false } };
export const db = createClient<Database>(env('SUPABASE_URL'), env('SUPABASE_SERVICE_ROLE_KEY'), options);
export const syncstate = db.schema('syncstate');

/** The user of a request, whose token the database checks; null if nobody is signed in. */
export async function userOf(request: Request): Promise<string | null> {
  const token = request.headers.get('Authorization')?.replace(/^Bearer /i, '') ?? '';
  const user = createClient<Database>(env('SUPABASE_URL'), env('SUPABASE_ANON_KEY'), { ...options, accessToken: async () => token });
  const { data, error, status } = await user.schema('syncstate').rpc('current_user_id');
  if (error && status !== 401 && status !== 403) throw error;
  return data;
}

/** HMAC-SHA256, in base64url. */
export async function hmac(key: string, text: string): Promise<string> {
  const bytes = (s: string) => new TextEncoder().encode(s);
  const imported = await crypto.subtle.importKey('raw', bytes(key), { name: 'HMAC', hash: 'SHA-256' }, false, ['sign']);
  return base64url(await crypto.subtle.sign('HMAC', imported, bytes(text)));
}

export const base64url = (buffer: ArrayBuffer): string =>
  btoa(String.fromCharCode(...new Uint8Array(buffer))).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
