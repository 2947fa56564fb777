// A double of the REST layer in front of a Supabase database, for tests on
// loopback.  It is no server for anybody's data, and it is not PostgREST.
//
// It does to the database what PostgREST 16 does for a request: checks the
// token, begins a transaction that is read-only where PostgREST's is, sets the
// same settings in the same order, and sends statements of the same shape, with
// arguments and rows as JSON through json_to_record.  Errors and statuses are
// PostgREST's too.  Not there: embedding, JSON paths, full text search, CSV,
// OpenAPI, pre-requests, hints that guess, preferences other than count, return,
// resolution and timezone, and statuses and headers that a function sets.

import { createHash, createHmac, timingSafeEqual } from 'node:crypto';
import { createServer } from 'node:http';
import pg from 'pg';

const ident = (name) => `"${name.replaceAll('"', '""')}"`;
const qualified = (schema, name) => `${ident(schema)}.${ident(name)}`;

// An error as the client gets it.  Headers and the status line's text are where
// some errors differ.
class RestError extends Error {
  constructor(status, code, message, { details = null, hint = null, headers = {}, statusText } = {}) {
    super(message);
    Object.assign(this, { status, headers, statusText, body: { code, details, hint, message } });
  }
}

// What a request is refused with that cannot be understood.
const malformed = (what, text) =>
  new RestError(400, 'PGRST100', `"failed to parse ${what} (${text})"`, { details: 'unexpected input' });

// ---- tokens

// Claims of a token signed with our secret, or an error.
export function verify(token, secret) {
  const refuse = (code, message) =>
    new RestError(401, code, message, {
      headers: { 'WWW-Authenticate': `Bearer error="invalid_token", error_description=${JSON.stringify(message)}` },
    });
  const parts = token.split('.');
  if (parts.length !== 3) throw refuse('PGRST301', `Expected 3 parts in JWT; got ${parts.length}`);
  const decode = (part) => {
    try {
      return JSON.parse(Buffer.from(part, 'base64url').toString());
    } catch {
      throw refuse('PGRST301', 'JWT cryptographic operation failed');
    }
  };
  if (decode(parts[0]).alg !== 'HS256') throw refuse('PGRST301', 'Wrong or unsupported encoding algorithm');
  const expected = createHmac('sha256', secret).update(`${parts[0]}.${parts[1]}`).digest();
  const given = Buffer.from(parts[2], 'base64url');
  if (given.length !== expected.length || !timingSafeEqual(given, expected))
    throw refuse('PGRST301', 'JWT cryptographic operation failed');

  const claims = decode(parts[1]);
  const now = Math.floor(Date.now() / 1000), skew = 30;
  if (claims.exp !== undefined && !(claims.exp >= now - skew)) throw refuse('PGRST303', 'JWT expired');
  if (claims.nbf !== undefined && !(claims.nbf <= now + skew)) throw refuse('PGRST303', 'JWT not yet valid');
  if (claims.iat !== undefined && !(claims.iat <= now + skew)) throw refuse('PGRST303', 'JWT issued at future');
  return claims;
}

export function sign(claims, secret, header = { alg: 'HS256', typ: 'JWT' }) {
  const text = [header, claims].map((part) => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.');
  return `${text}.${createHmac('sha256', secret).update(text).digest('base64url')}`;
}

// ---- what is exposed

// Types by their full names, whatever the search_path.
const FUNCTIONS = `
  SELECT n.nspname AS schema, p.proname AS name, p.provolatile <> 'v' AS read_only, p.proretset AS returns_set,
    p.prorettype = 'void'::regtype AS returns_void,
    t.typtype = 'c' OR t.typtype = 'p' AND t.typname = 'record' AS returns_rows,
    coalesce((SELECT json_agg(json_build_object('name', a.name, 'type', format_type(a.type, NULL),
        'required', a.at <= p.pronargs - p.pronargdefaults) ORDER BY a.at)
      FROM unnest(p.proargnames, p.proargtypes::oid[]) WITH ORDINALITY AS a (name, type, at)
      WHERE a.type IS NOT NULL), '[]') AS params,
    coalesce((SELECT json_agg(s) FROM unnest(p.proconfig) AS s
      WHERE s ~ '^(statement_timeout|plan_filter.statement_cost_limit|default_transaction_isolation)='), '[]') AS settings
  FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace JOIN pg_type AS t ON t.oid = p.prorettype
  WHERE n.nspname = ANY($1) AND p.prokind = 'f' AND p.prorettype <> 'trigger'::regtype
    AND (p.pronargs = 0 OR cardinality(p.proargnames) >= p.pronargs AND '' <> ALL(p.proargnames))`;

const TABLES = `
  SELECT n.nspname AS schema, c.relname AS name,
    json_object_agg(a.attname, format_type(a.atttypid, a.atttypmod)) AS columns,
    (SELECT array_agg(k.attname::text ORDER BY k.attnum) FROM pg_constraint AS p
      JOIN pg_attribute AS k ON k.attrelid = p.conrelid AND k.attnum = ANY(p.conkey)
      WHERE p.conrelid = c.oid AND p.contype = 'p') AS key
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  WHERE n.nspname = ANY($1) AND c.relkind IN ('r', 'v', 'm', 'f', 'p')
  GROUP BY n.nspname, c.relname, c.oid`;

// What ALTER ROLE set for the roles that requests may run as.
const ROLE_SETTINGS = `
  SELECT r.rolname AS role, s AS setting FROM pg_roles AS r, unnest(r.rolconfig) AS s
  WHERE pg_has_role(current_user, r.oid, 'member') AND s !~ '^default_transaction_isolation='`;

async function readSchema(pool, schemas) {
  const client = await pool.connect();
  try {
    await client.query("BEGIN; SET LOCAL search_path = ''");
    const functions = await client.query(FUNCTIONS, [schemas]);
    const tables = await client.query(TABLES, [schemas]);
    const settings = await client.query(ROLE_SETTINGS);
    await client.query('COMMIT');
    return { functions: functions.rows, tables: tables.rows, settings: settings.rows };
  } finally {
    client.release();
  }
}

// The function of this name whose arguments are these keys: all required ones
// and any of the others.
function findFunction(cache, schema, name, keys) {
  const named = cache.functions.filter((f) => f.schema === schema && f.name === name);
  const found = named.filter(
    (f) =>
      keys.every((key) => f.params.some((p) => p.name === key)) &&
      f.params.every((p) => !p.required || keys.includes(p.name)),
  );
  if (found.length === 1) return found[0];
  if (found.length > 1) {
    const signatures = found.map(
      (f) => `${schema}.${name}(${f.params.map((p) => `${p.name} => ${p.type}`).join(', ')})`,
    );
    throw new RestError(300, 'PGRST203', `Could not choose the best candidate function between: ${signatures.join(', ')}`, {
      hint: 'Try renaming the parameters or the function itself in the database so function overloading can be resolved',
    });
  }
  const list = keys.join(', ');
  throw new RestError(
    404,
    'PGRST202',
    `Could not find the function ${schema}.${name}${keys.length ? `(${list})` : ' without parameters'} in the schema cache`,
    {
      details:
        `Searched for the function ${schema}.${name}` +
        (keys.length ? ` with parameter${keys.length > 1 ? 's' : ''} ${list}` : ' without parameters') +
        ' or with a single unnamed json/jsonb parameter, but no matches were found in the schema cache.',
    },
  );
}

// ---- query strings

// Splits at commas that are in neither parentheses nor quotes.
function splitList(text) {
  const parts = [];
  let depth = 0, quoted = false, part = '';
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted && c === '\\') part += c + (text[++i] ?? '');
    else {
      if (c === '"') quoted = !quoted;
      else if (!quoted && c === '(') depth++;
      else if (!quoted && c === ')') depth--;
      if (c === ',' && depth === 0 && !quoted) {
        parts.push(part);
        part = '';
      } else part += c;
    }
  }
  return [...parts, part];
}

const unquote = (text) => (/^".*"$/s.test(text) ? text.slice(1, -1).replace(/\\(.)/gs, '$1') : text);

const OPERATORS = { eq: '=', neq: '<>', gt: '>', gte: '>=', lt: '<', lte: '<=', like: 'LIKE', ilike: 'ILIKE', match: '~', imatch: '~*' };

// A part of a statement under way: text, and values as untyped parameters.
class Statement {
  constructor() {
    this.values = [];
  }
  value(v) {
    return `$${this.values.push(v)}`;
  }

  // "eq.5", "not.in.(a,b)"
  filter(table, column, text) {
    const [, not, operator, operand] = /^(not\.)?([a-z]+)\.(.*)$/s.exec(text) ?? [];
    const left = `${not ? 'NOT ' : ''}${table}.${ident(column)}`;
    if (operator === 'is' && /^(null|not_null|true|false|unknown)$/i.test(operand))
      return `${left} IS ${operand.toUpperCase().replace('_', ' ')}`;
    if (operator === 'isdistinct') return `${left} IS DISTINCT FROM ${this.value(operand)}`;
    if (operator === 'in' && /^\(.*\)$/s.test(operand)) {
      const items = operand === '()' ? [] : splitList(operand.slice(1, -1)).map(unquote);
      const array = items.map((item) => `"${item.replace(/["\\]/g, '\\$&')}"`).join(',');
      return `${left} = ANY (${this.value(`{${array}}`)})`;
    }
    if (!Object.hasOwn(OPERATORS, operator ?? '')) throw malformed('filter', text);
    return `${left} ${OPERATORS[operator]} ${this.value(operator.includes('like') ? operand.replaceAll('*', '%') : operand)}`;
  }

  // "(a.eq.1,and(b.is.null,c.gt.2))"
  logic(table, kind, text) {
    if (!/^\(.*\)$/s.test(text)) throw malformed('logic tree', text);
    const terms = splitList(text.slice(1, -1)).map((term) => {
      const group = /^(not\.)?(and|or)(\(.*\))$/s.exec(term);
      if (group) return `${group[1] ? 'NOT ' : ''}${this.logic(table, group[2], group[3])}`;
      const [, column, rest] = /^([^.]+)\.(.*)$/s.exec(term) ?? [];
      if (!column) throw malformed('logic tree', text);
      return this.filter(table, unquote(column), rest);
    });
    return `(${terms.join(kind === 'or' ? ' OR ' : ' AND ')})`;
  }

  where(table, query) {
    const terms = query.filters.map(([key, text]) => {
      const group = /^(not\.)?(and|or)$/.exec(key);
      return group ? `${group[1] ? 'NOT ' : ''}${this.logic(table, group[2], text)}` : this.filter(table, key, text);
    });
    return terms.length ? ` WHERE ${terms.join(' AND ')}` : '';
  }

  // The columns, rows and order that a query string asks for.
  read(table, query) {
    const columns = splitList(query.select ?? '*').map((item) => {
      const [, alias, column, cast] = /^(?:([^:()]+):)?([^:()]+)(?:::([a-z0-9_ ]+))?$/.exec(item) ?? [];
      if (!column) throw malformed('select parameter', query.select);
      if (column === '*') return `${table}.*`;
      const field = `${table}.${ident(unquote(column))}`;
      return (cast ? `CAST( ${field} AS ${cast} )` : field) + (alias || cast ? ` AS ${ident(alias ?? column)}` : '');
    });
    const order = splitList(query.order ?? '').filter(Boolean).map((term) => {
      const [, column, direction, nulls] = /^([^.]+?)(?:\.(asc|desc))?(?:\.nulls(first|last))?$/.exec(term) ?? [];
      if (!column) throw malformed('order', query.order);
      return `${table}.${ident(column)} ${(direction ?? '').toUpperCase()} ${nulls ? `NULLS ${nulls.toUpperCase()}` : ''}`;
    });
    const where = this.where(table, query);
    const range = query.limit === undefined && query.offset === undefined ? '' :
      ` LIMIT ${query.limit === undefined ? 'ALL' : this.value(query.limit)} OFFSET ${this.value(query.offset ?? '0')}`;
    return `SELECT ${columns.join(', ')} FROM ${table}${where}${order.length ? ` ORDER BY ${order.join(', ')}` : ''}${range}`;
  }

  // The request's body as a row source of these typed columns.
  body(text, columns, { many = false } = {}) {
    const names = columns.map(([name]) => ident(name)).join(', ');
    const typed = columns.map(([name, type]) => `${ident(name)} ${type}`).join(', ');
    const from = columns.length ?
      `${many ? 'json_to_recordset' : 'json_to_record'}(pgrst_payload.json_data) AS _(${typed})` :
      `${many ? 'json_array_elements(pgrst_payload.json_data) _' : '(values(1)) _'}`;
    return `FROM (SELECT ${this.value(text)}::json AS json_data) pgrst_payload, LATERAL (SELECT ${names} FROM ${from}) pgrst_body`;
  }
}

// ---- requests

const READ = 'GET HEAD'.split(' ');

// JSON stays text all the way: numbers must reach the client as they are.
const AS_TEXT = { getTypeParser: () => (value) => value };

// The main statement of a request, and whether it runs read-only.
function plan(request, cache) {
  const { method, schema, path, query, body, prefer, singular } = request;
  const s = new Statement();
  const first = 'json_agg(_postgrest_t)->0';
  const count = (from) => (prefer.count === 'exact' ? `, pgrst_source_count AS (${from})` : '');
  const finish = (source, counted, reading, json) => ({
    values: s.values,
    text: `WITH pgrst_source AS (${source})${counted} SELECT ` +
      `${counted ? '(SELECT pg_catalog.count(*) FROM pgrst_source_count)' : 'null::bigint'} AS total_result_set, ` +
      `pg_catalog.count(_postgrest_t) AS page_total, ${json} AS body, ` +
      "nullif(current_setting('response.headers', true), '') AS response_headers, " +
      `nullif(current_setting('response.status', true), '') AS response_status FROM (${reading}) _postgrest_t`,
  });
  const rows = singular ? `coalesce(${first}, 'null')` : "coalesce(json_agg(_postgrest_t), '[]')";

  if (path[0] === 'rpc' && path.length === 2) {
    if (!READ.includes(method) && method !== 'POST')
      throw new RestError(405, 'PGRST101', `Cannot use the ${method} method on RPC`);
    let text = body || '{}', keys;
    if (READ.includes(method)) {
      // Arguments and filters share the query string: the names tell.
      const names = new Set(cache.functions.filter((f) => f.schema === schema && f.name === path[1])
        .flatMap((f) => f.params.map((p) => p.name)));
      const given = query.filters.filter(([key]) => names.has(key) || names.size === 0);
      query.filters = query.filters.filter((filter) => !given.includes(filter));
      keys = given.map(([key]) => key);
      text = JSON.stringify(Object.fromEntries(given));
    } else {
      // Only the keys are looked at; numbers go on to the database as they came.
      try {
        keys = Object.keys(JSON.parse(text));
      } catch {
        throw new RestError(400, 'PGRST102', 'Empty or invalid json');
      }
    }
    const f = findFunction(cache, schema, path[1], keys);
    const params = f.params.filter((p) => keys.includes(p.name));
    const call = `${qualified(schema, f.name)}(${params.map((p) => `${ident(p.name)} := pgrst_body.${ident(p.name)}`).join(', ')})`;
    const from = params.length ? `${s.body(text, params.map((p) => [p.name, p.type]))}, LATERAL ` : 'FROM ';
    const source = f.returns_rows ?
      `SELECT pgrst_call.* ${from}${call} pgrst_call` :
      `SELECT pgrst_call.pgrst_scalar ${from}(SELECT ${call} pgrst_scalar) pgrst_call`;
    const reading = s.read('pgrst_source', query);
    const json = f.returns_rows ?
      (f.returns_set && !singular ? rows : `coalesce(${first}, 'null')`) :
      (f.returns_set ? "coalesce(json_agg(_postgrest_t.pgrst_scalar), '[]')" : "coalesce(json_agg(_postgrest_t.pgrst_scalar)->0, 'null')");
    return {
      ...finish(source, count('SELECT 1 FROM pgrst_source'), reading, json),
      readOnly: READ.includes(method) || f.read_only,
      settings: f.settings,
      status: f.returns_void ? 204 : 200,
    };
  }

  if (path.length !== 1) throw new RestError(404, 'PGRST125', 'Invalid path specified in request URL');
  const table = cache.tables.find((t) => t.schema === schema && t.name === path[0]);
  if (!table)
    throw new RestError(404, 'PGRST205', `Could not find the table '${schema}.${path[0]}' in the schema cache`);
  const name = qualified(schema, table.name);

  if (READ.includes(method)) {
    const reading = s.read(name, query);
    const counted = prefer.count === 'exact' ? count(`SELECT 1 FROM ${name}${s.where(name, query)}`) : '';
    return { ...finish(reading, counted, 'SELECT * FROM pgrst_source', rows), readOnly: true, settings: [], status: 200 };
  }

  const returning = prefer.return === 'representation';
  const back = ` RETURNING ${returning ? `${name}.*` : '1'}`;
  const finishWrite = (source, status) => ({
    ...finish(source, '', returning ? s.read('pgrst_source', { ...query, filters: [] }) : 'SELECT * FROM pgrst_source',
      returning ? rows : "''"),
    readOnly: false, settings: [], status: returning && status === 204 ? 200 : status,
  });
  const columns = () => {
    let payload;
    try {
      payload = JSON.parse(body);
    } catch {
      throw new RestError(400, 'PGRST102', 'Empty or invalid json');
    }
    const names = query.columns ? splitList(query.columns).map(unquote) : Object.keys([payload].flat()[0] ?? {});
    const missing = names.find((column) => !Object.hasOwn(table.columns, column));
    if (missing !== undefined)
      throw new RestError(400, 'PGRST204', `Could not find the '${missing}' column of '${table.name}' in the schema cache`);
    return { many: Array.isArray(payload), typed: names.map((column) => [column, table.columns[column]]) };
  };

  if (method === 'POST') {
    const { many, typed } = columns();
    const names = typed.map(([column]) => ident(column)).join(', ');
    const target = (query.on_conflict ? splitList(query.on_conflict) : table.key ?? []).map(ident).join(', ');
    const conflict = !prefer.resolution || !target ? '' : ` ON CONFLICT(${target}) ${
      prefer.resolution === 'ignore-duplicates' || !typed.length ? 'DO NOTHING' :
      `DO UPDATE SET ${typed.map(([column]) => `${ident(column)} = EXCLUDED.${ident(column)}`).join(', ')}`}`;
    const source = `INSERT INTO ${name}(${names}) SELECT ${typed.map(([column]) => `pgrst_body.${ident(column)}`).join(', ')} ` +
      `${s.body(body, typed, { many })}${conflict}${back}`;
    return finishWrite(source, 201);
  }
  if (method === 'PATCH') {
    const { many, typed } = columns();
    const set = typed.map(([column]) => `${ident(column)} = pgrst_body.${ident(column)}`).join(', ');
    const from = s.body(body, typed, { many });
    return finishWrite(`UPDATE ${name} SET ${set} ${from}${s.where(name, query)}${back}`, 204);
  }
  if (method === 'DELETE') return finishWrite(`DELETE FROM ${name}${s.where(name, query)}${back}`, 204);
  throw new RestError(405, 'PGRST117', `Unsupported HTTP method: ${method}`);
}

// A database's error, with its HTTP status.
function fromDatabase(error, anonymous) {
  const { code, message } = error;
  const statuses = [
    [/^08/, 503], [/^(0L|0P|28)/, 403], [/^(23503|23505)$/, 409], [/^25006$/, 405],
    [/^(09|25|2D|38|39|3B|40|54|55|58|F0|HV|XX)/, 500], [/^53400$/, 500], [/^53/, 503], [/^57P01$/, 503], [/^57/, 500],
    [/^21000$/, message.endsWith('requires a WHERE clause') ? 400 : 500],
    [/^22023$/, /^role.*does not exist$/s.test(message) ? 401 : 400],
    [/^P0001$/, 400], [/^P0/, 500], [/^(42883|42P01)$/, 404], [/^42P17$/, 500], [/^42501$/, anonymous ? 401 : 403],
  ];
  const own = /^PT([1-5]\d\d)$/.exec(code);
  const status = own ? Number(own[1]) : /^PT/.test(code) ? 500 : (statuses.find(([codes]) => codes.test(code))?.[1] ?? 400);
  return new RestError(status, code, message, {
    details: error.detail ?? null,
    hint: error.hint ?? null,
    headers: status === 401 ? { 'WWW-Authenticate': 'Bearer' } : {},
    statusText: own ? message : undefined,
  });
}

// Starts it on a port of loopback; close() ends it.
//
//	connection	how the role authenticator connects, as pg wants it
//	secret		of the tokens
//	schemas		that are exposed
export async function startDouble({ connection, secret, schemas, anonRole = 'anon', extraSearchPath = ['public'], connections = 4 }) {
  const pool = new pg.Pool({ ...connection, max: connections });
  pool.on('error', () => {}); // a connection that the server ended: the next request opens another
  const cache = await readSchema(pool, schemas);

  async function answer(request, body) {
    const url = new URL(request.url, 'http://localhost');
    if (!url.pathname.startsWith('/rest/v1/'))
      throw new RestError(404, 'PGRST125', 'Invalid path specified in request URL');
    const { headers, method } = request;

    const authorization = /^Bearer (.*)$/i.exec(headers.authorization ?? '');
    const claims = authorization ? verify(authorization[1], secret) : {};
    const role = typeof claims.role === 'string' ? claims.role : anonRole;

    const schema = (READ.includes(method) ? headers['accept-profile'] : headers['content-profile']) ?? schemas[0];
    if (!schemas.includes(schema))
      throw new RestError(406, 'PGRST106', `Invalid schema: ${schema}`, {
        hint: `Only the following schemas are exposed: ${schemas.join(', ')}`,
      });

    const prefer = Object.fromEntries((headers.prefer ?? '').split(',').map((p) => p.trim().split('=')));
    const reserved = new Set(['select', 'order', 'limit', 'offset', 'columns', 'on_conflict']);
    const query = { filters: [...url.searchParams].filter(([key]) => !reserved.has(key)) };
    for (const key of reserved) query[key] = url.searchParams.get(key) ?? undefined;
    const singular = /application\/vnd\.pgrst\.object/.test(headers.accept ?? '');
    const path = url.pathname.slice('/rest/v1/'.length).split('/').map(decodeURIComponent);
    const main = plan({ method, schema, path, query, body, prefer, singular }, cache);

    // The order counts: whether a role's own settings may be set is asked of
    // the role that is connected, so they come before the role.
    const setup = new Statement();
    const constant = (name, value) => `set_config('${name}', ${setup.value(value)}, true)`;
    const dynamic = (setting) => {
      const [name, value] = setting.split(/=(.*)/s);
      return `set_config(${setup.value(name)}, ${setup.value(value)}, true)`;
    };
    const { cookie, ...others } = headers;
    const cookies = Object.fromEntries((cookie ?? '').split('; ').filter(Boolean).map((c) => c.split(/=(.*)/s, 2)));
    const settings = [
      constant('search_path', [schema, ...extraSearchPath].map(ident).join(', ')),
      ...cache.settings.filter((s) => s.role === role).map((s) => dynamic(s.setting)),
      constant('role', role),
      constant('request.jwt.claims', JSON.stringify({ ...claims, role })),
      constant('request.method', method),
      constant('request.path', url.pathname.slice('/rest/v1'.length)),
      constant('request.headers', JSON.stringify(others)),
      constant('request.cookies', JSON.stringify(cookies)),
      ...(prefer.timezone ? [constant('timezone', prefer.timezone)] : []),
      ...main.settings.map(dynamic),
    ];

    const client = await pool.connect();
    const run = (text, values) => // prepared once per connection
      client.query({ name: createHash('sha1').update(text).digest('hex'), text, values, types: AS_TEXT });
    try {
      await client.query(`BEGIN ISOLATION LEVEL READ COMMITTED ${main.readOnly ? 'READ ONLY' : 'READ WRITE'}`);
      await run(`select ${settings.join(', ')}`, setup.values);
      const { rows: [result] } = await run(main.text, main.values);
      if (singular && Number(result.page_total) !== 1)
        throw new RestError(406, 'PGRST116', 'Cannot coerce the result to a single JSON object', {
          details: `The result contains ${result.page_total} rows`,
        });
      await client.query('COMMIT');
      const from = Number(query.offset ?? 0), number = Number(result.page_total);
      const total = result.total_result_set;
      return {
        status: main.status === 200 && total !== null && number < Number(total) ? 206 : main.status,
        headers: {
          'Content-Type': `application/${singular ? 'vnd.pgrst.object+json' : 'json'}; charset=utf-8`,
          'Content-Range': `${number ? `${from}-${from + number - 1}` : '*'}/${total ?? '*'}`,
        },
        body: main.status === 204 || method === 'HEAD' ? '' : result.body,
      };
    } catch (error) {
      await client.query('ROLLBACK').catch(() => {});
      throw error instanceof pg.DatabaseError ? fromDatabase(error, role === anonRole) : error;
    } finally {
      client.release();
    }
  }

  const server = createServer(async (request, response) => {
    let result;
    try {
      const chunks = [];
      for await (const chunk of request) chunks.push(chunk);
      result = await answer(request, Buffer.concat(chunks).toString());
    } catch (error) {
      if (!(error instanceof RestError)) {
        console.error(error); // ours, or the connection: a test shall see it
        error = new RestError(503, 'PGRST000', 'Database connection error. Retrying the connection.');
      }
      result = {
        status: error.status,
        statusText: error.statusText,
        headers: { 'Content-Type': 'application/json; charset=utf-8', ...error.headers },
        body: JSON.stringify(error.body),
      };
    }
    if (result.statusText) response.statusMessage = result.statusText.replace(/[^\x20-\x7e]/g, '?');
    response.writeHead(result.status, result.headers);
    response.end(result.body);
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));

  return {
    url: `http://127.0.0.1:${server.address().port}`,
    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
      await pool.end();
    },
  };
}
