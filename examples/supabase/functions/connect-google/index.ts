// Connects a Google account of the signed-in user, with its list of calendars. The application
// calls it twice with the user's session, and Google sends the browser back to the application:
//
//   invoke('connect-google')                             returns { url }: go there
//   invoke('connect-google', { body: { code, state } })  with what Google added to REDIRECT_URL
//
// So the user who brings the code back must be the one who was sent to Google: a link that
// somebody else has started connects nothing.
//
//   REDIRECT_URL                            a page of the application, registered with Google
//   GOOGLE_CLIENT_ID, GOOGLE_CLIENT_SECRET  of your OAuth client
//   STATE_KEY                               a long random text

import { base64url, db, env, hmac, syncstate, userOf } from '../_shared/database.ts';
import { ApiError, requestTokens } from '../_shared/google.ts';

const CALENDAR = 'https://www.googleapis.com/auth/calendar.readonly';
const REDIRECT_URL = env('REDIRECT_URL');
const STATE_KEY = env('STATE_KEY');
const STATE_MS = 10 * 60_000;
const CORS = {
  'Access-Control-Allow-Origin': new URL(REDIRECT_URL).origin,
  'Access-Control-Allow-Headers': 'authorization, x-client-info, apikey, content-type',
};
const answer = (body: unknown, status = 200) => Response.json(body, { status, headers: CORS });

/** Until when it is good, and a MAC of that and the user: nothing needs to be stored. */
const stateOf = async (user_id: string, until: string) => `${until}.${await hmac(STATE_KEY, `state ${user_id} ${until}`)}`;

/** PKCE: a code is exchanged only with the state that it was asked for with. */
const verifierOf = (state: string) => hmac(STATE_KEY, `verifier ${state}`);

async function consentUrl(user_id: string): Promise<string> {
  const state = await stateOf(user_id, String(Date.now() + STATE_MS));
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(await verifierOf(state)));
  return `https://accounts.google.com/o/oauth2/v2/auth?${new URLSearchParams({
    client_id: env('GOOGLE_CLIENT_ID'), redirect_uri: REDIRECT_URL, response_type: 'code', scope: `openid ${CALENDAR}`,
    access_type: 'offline', prompt: 'consent', // both, or there is no refresh token
    state, code_challenge: base64url(digest), code_challenge_method: 'S256',
  })}`;
}

async function connect(user_id: string, code: string, state: string): Promise<Response> {
  const [until = ''] = state.split('.');
  if (state !== (await stateOf(user_id, until)) || Number(until) < Date.now()) return answer({ error: 'start again' }, 403);

  const tokens = await requestTokens(
    { grant_type: 'authorization_code', code, redirect_uri: REDIRECT_URL, code_verifier: await verifierOf(state) }, AbortSignal.timeout(15_000));
  const { refresh_token, id_token, scope = '' } = tokens;
  if (!refresh_token || !id_token) return answer({ error: 'Google gave no refresh token' }, 400);
  if (!scope.split(' ').includes(CALENDAR)) return answer({ error: 'the calendars were not granted' }, 400);

  // It came from Google itself, over TLS, so its signature needs no check. `sub` never changes; an e-mail address may.
  const account: string = JSON.parse(atob(id_token.split('.')[1]!.replaceAll('-', '+').replaceAll('_', '/'))).sub;

  // In this order: a sync that begins at once finds the grant.
  await db.from('google_grants').upsert({ user_id, account, refresh_token }).throwOnError();
  await syncstate.rpc('connect_account', { user_id, account, provider: 'google' }).throwOnError(); // what was parked is due
  await syncstate.rpc('connect_sync', { user_id, account, source: 'google_calendar' }).throwOnError(); // the list of calendars
  return answer({ account });
}

Deno.serve(async (request) => {
  if (request.method === 'OPTIONS') return new Response(null, { headers: CORS });
  try {
    const user_id = await userOf(request);
    if (!user_id) return answer({ error: 'not signed in' }, 401);
    const { code, state } = (await request.json().catch(() => null)) ?? {};
    return code ? await connect(user_id, String(code), String(state)) : answer({ url: await consentUrl(user_id) });
  } catch (error) {
    console.error(String(error));
    return error instanceof ApiError && error.status === 400 ? answer({ error: 'start again' }, 400) : answer({ error: 'try again later' }, 503);
  }
});
