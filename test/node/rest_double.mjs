// A double of the REST layer in front of a Supabase database, for tests on
// loopback.  It is no server for anybody's data, and it is not PostgREST.
//
// It does to the database what PostgREST 16 does for a request: checks the
// token, begins a transaction that is read-only where PostgREST's is, sets the
// same settings in the same order, and sends statements of the same shape, with
// arguments and rows as JSON through json_to_record.  Errors and statuses are
// PostgREST's too.  It was compared once with PostgREST 16.2 and 14.17, which
// differ from each other in the header Vary alone.  Left out:
//
//	reading		embedding, JSON paths, eq(any), full text search, OpenAPI, plans
//	bodies		forms, text/plain, CSV; an array for a function; columns= of one
//	requests	PUT, Range, counts that are planned or estimated, headers-only,
//			nulls=stripped, other preferences under handling=strict
//	answers		hints that guess names, Location, what a function sets
//	settings	pre-requests, isolation levels of roles

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

// What is sent where an offset lies behind the last row: the rows are lost, but
// what the request did stays.
const beyond = (offset, total) =>
  new RestError(416, 'PGRST103', 'Requested range not satisfiable', {
    details: `An offset of ${offset} was requested, but there are only ${total} rows.`,
  });

// ---- tokens

// Claims of a token signed with our secret, or an error.
export function verify(token, secret) {
  const refuse = (code, message, details) =>
    new RestError(401, code, message, {
      details,
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
  const { alg } = decode(parts[0]);
  if (alg === 'none')
    throw refuse('PGRST301', 'Wrong or unsupported encoding algorithm', "JWT is unsecured but expected 'alg' was not 'none'");
  const expected = createHmac('sha256', secret).update(`${parts[0]}.${parts[1]}`).digest();
  const given = Buffer.from(parts[2], 'base64url');
  if (alg !== 'HS256' || given.length !== expected.length || !timingSafeEqual(given, expected))
    throw refuse('PGRST301', 'No suitable key or wrong key type', 'None of the keys was able to decode the JWT');

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
    CASE WHEN t.typtype = 'c' THEN t.typname ELSE p.proname END AS row_name,
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
    json_object_agg(a.attname, json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
      'default', (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef AS d WHERE d.adrelid = c.oid AND d.adnum = a.attnum)))
      AS columns,
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

// How many insertions, deletions and replacements turn one text into the other, as
// a part of the longer one's length, taken from 1.
function similarity(a, b) {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const last = row;
    row = [i];
    for (let j = 1; j <= b.length; j++)
      row[j] = Math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1));
  }
  return 1 - row[b.length] / Math.max(a.length, b.length);
}

// The function of this name whose arguments are these keys: all required ones
// and any of the others.
function findFunction(cache, schema, name, keys, posted) {
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
  const [nearest] = named.map((f) => `(${f.params.map((p) => p.name).sort().join(', ')})`)
    .map((params) => ({ params, score: keys.length && similarity(params, `(${list})`) }))
    .filter(({ score }) => score >= 0.33).sort((a, b) => b.score - a.score);
  throw new RestError(
    404,
    'PGRST202',
    `Could not find the function ${schema}.${name}${keys.length ? `(${list})` : ' without parameters'} in the schema cache`,
    {
      details:
        `Searched for the function ${schema}.${name}` +
        (keys.length ? ` with parameter${keys.length > 1 ? 's' : ''} ${list}` : ' without parameters') +
        (posted ? ' or with a single unnamed json/jsonb parameter' : '') +
        ', but no matches were found in the schema cache.',
      hint: nearest && `Perhaps you meant to call the function ${schema}.${name}${nearest.params}`,
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

// The names of a list of columns.
const nameList = (text) => splitList(text).map(unquote);

const OPERATORS = { eq: '=', neq: '<>', gt: '>', gte: '>=', lt: '<', lte: '<=', like: 'LIKE', ilike: 'ILIKE', match: '~', imatch: '~*' };

const RESERVED = ['select', 'order', 'limit', 'offset', 'columns', 'on_conflict'];

// A query string, taken apart; canonical: with its names in order.
function parseQuery(params) {
  const encode = (text) => encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
  const sorted = new URLSearchParams(params);
  sorted.sort();
  const query = {
    filters: [...params].filter(([key]) => !RESERVED.includes(key)),
    canonical: [...sorted].map((param) => param.map(encode).join('=')).join('&'),
  };
  for (const key of RESERVED) query[key] = params.get(key) ?? undefined;
  query.select = splitList(query.select ?? '*').map((item) => {
    const [, alias, column, cast] = /^(?:([^:()]+):)?([^:()]+)(?:::([a-z0-9_ ]+))?$/.exec(item) ?? [];
    if (!column) throw malformed('select parameter', params.get('select'));
    return { alias, column: unquote(column), cast };
  });
  query.order = splitList(query.order ?? '').filter(Boolean).map((term) => {
    const [, column, direction = '', nulls] = /^([^.]+?)(?:\.(asc|desc))?(?:\.nulls(first|last))?$/.exec(term) ?? [];
    if (!column) throw malformed('order', params.get('order'));
    return { column: unquote(column), how: `${direction.toUpperCase()} ${nulls ? `NULLS ${nulls.toUpperCase()}` : ''}` };
  });
  return query;
}

// Whether what stands in a function's query string is a filter of its answer, not
// an argument: the value tells.
function isFilter([key, value]) {
  const [first, ...more] = value.split('.');
  return /^(and|or)$|\./.test(key) || Object.hasOwn(OPERATORS, first) || ['is', 'in', 'isdistinct'].includes(first) ||
    (first === 'not' && more.length > 0);
}

// A part of a statement under way: text, values as untyped parameters, and the
// columns that its filters name.
class Statement {
  constructor() {
    this.values = [];
    this.filtered = [];
  }
  value(v) {
    return `$${this.values.push(v)}`;
  }

  // "eq.5", "not.in.(a,b)"
  filter(table, column, text) {
    this.filtered.push(column);
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

  // The columns, rows and order that a query string asks for.  Columns are
  // qualified with the table's name, or its alias.
  read(from, table, query) {
    const columns = query.select.map(({ alias, column, cast }) => {
      if (column === '*') return `${table}.*`;
      const field = `${table}.${ident(column)}`;
      return (cast ? `CAST( ${field} AS ${cast} )` : field) + (alias || cast ? ` AS ${ident(alias ?? column)}` : '');
    });
    const order = query.order.map(({ column, how }) => `${table}.${ident(column)} ${how}`);
    const range = query.limit === undefined && query.offset === undefined ? '' :
      ` LIMIT ${query.limit === undefined ? 'ALL' : this.value(query.limit)} OFFSET ${this.value(query.offset ?? '0')}`;
    return `SELECT ${columns.join(', ')} FROM ${from}${this.where(table, query)}` +
      `${order.length ? ` ORDER BY ${order.join(', ')}` : ''}${range}`;
  }

  // The request's body as a row source of these columns.  A column that an object
  // lacks is null, or has its default.
  body(text, columns, { many = false, defaults = false } = {}) {
    const names = columns.map((c) => ident(c.name)).join(', ');
    const typed = columns.map((c) => `${ident(c.name)} ${c.type}`).join(', ');
    const filled = columns.filter((c) => c.default).map((c) => `${pg.escapeLiteral(c.name)}, ${c.default}`).join(', ');
    const json = defaults ? 'jsonb' : 'json';
    const payload = defaults ? 'pgrst_json_defs.val' : 'pgrst_payload.json_data';
    const from = columns.length ? `${json}_to_record${many ? 'set' : ''}(${payload}) AS _(${typed})` :
      many ? `${json}_array_elements(${payload}) _` : '(values(1)) _';
    return `FROM (SELECT ${this.value(text)}::${json} AS json_data) pgrst_payload, ` +
      (!defaults ? '' : many ?
        `LATERAL (SELECT jsonb_agg(jsonb_build_object(${filled}) || elem) AS val FROM jsonb_array_elements(pgrst_payload.json_data) elem) pgrst_json_defs, ` :
        `LATERAL (SELECT jsonb_build_object(${filled}) || pgrst_payload.json_data AS val) pgrst_json_defs, `) +
      `LATERAL (SELECT ${names} FROM ${from}) pgrst_body`;
  }
}

// ---- requests

const READ = 'GET HEAD'.split(' ');

// Preferences that each kind of request obeys, in the order in which answers name them.
const PREFERENCES = {
  read: ['count', 'handling', 'timezone'],
  call: ['count', 'handling', 'timezone', 'max-affected'],
  POST: ['resolution', 'missing', 'return', 'count', 'handling', 'timezone'],
  PATCH: ['missing', 'return', 'count', 'handling', 'timezone', 'max-affected'],
  DELETE: ['return', 'count', 'handling', 'timezone', 'max-affected'],
};

// JSON stays text all the way: numbers must reach the client as they are.
const AS_TEXT = { getTypeParser: () => (value) => value };

// The main statement: a source of rows, what is read of it, and that as JSON.
const mainStatement = (s, { source, reading = 'SELECT * FROM pgrst_source', json, counted }) => ({
  values: s.values,
  text: `WITH pgrst_source AS (${source})${counted ? `, pgrst_source_count AS (${counted})` : ''} SELECT ` +
    `${counted ? '(SELECT pg_catalog.count(*) FROM pgrst_source_count)' : 'null::bigint'} AS total_result_set, ` +
    `pg_catalog.count(_postgrest_t) AS page_total, ${json} AS body, ` +
    "nullif(current_setting('response.headers', true), '') AS response_headers, " +
    "nullif(current_setting('response.status', true), '') AS response_status, " +
    `nullif(current_setting('pgrst.inserted', true), '') AS inserted FROM (${reading}) _postgrest_t`,
});

const asJson = (item, one) => `coalesce(json_agg(${item})${one ? "->0, 'null'" : ", '[]'"})`;

// "0-4/12"; "*" where there are none, or where it is not known.
const contentRange = (first, last, total) => `${first <= last && total !== 0 ? `${first}-${last}` : '*'}/${total ?? '*'}`;

// Status and Content-Range of an answer of rows.
const pageFrom = (offset = 0) => ({ number, total }) => ({
  status: total === null ? 200 : offset > total ? 416 : number < total ? 206 : 200,
  range: contentRange(Number(offset), Number(offset) + number - 1, total),
});

// The columns that a call or write returns: those that are read of its rows, and
// these.
function returned(from, query, more) {
  const names = query.select.map((item) => item.column);
  return names.includes('*') ? `${from}.*` : [...new Set([...names, ...more])].map((name) => `${from}.${ident(name)}`).join(', ');
}

// The body of a request, if it is one that can be read: it may hold no half of a
// surrogate pair.
function parseBody(text) {
  try {
    return JSON.parse(text, (key, value) => {
      if (/\p{Surrogate}/u.test(key) || (typeof value === 'string' && /\p{Surrogate}/u.test(value))) throw new SyntaxError();
      return value;
    });
  } catch {
    throw new RestError(400, 'PGRST102', 'Empty or invalid json');
  }
}

// The sorted names in an object, or in each of an array.
function keysOf(payload) {
  const [first = [], ...others] = [payload].flat().map((object) => Object.keys(object ?? {}).sort());
  if (others.some((keys) => JSON.stringify(keys) !== JSON.stringify(first)))
    throw new RestError(400, 'PGRST102', 'All object keys must match');
  return first;
}

// What a request comes to: the main statement, how it is run, and how answered.
function plan(request, cache) {
  const { method, schema, path } = request;
  if (path[0] === 'rpc' && path.length === 2) {
    if (!READ.includes(method) && method !== 'POST')
      throw new RestError(405, 'PGRST101', `Cannot use the ${method} method on RPC`);
    return planCall(request, cache);
  }
  if (path.length !== 1) throw new RestError(404, 'PGRST125', 'Invalid path specified in request URL');
  const table = cache.tables.find((t) => t.schema === schema && t.name === path[0]);
  if (!table)
    throw new RestError(404, 'PGRST205', `Could not find the table '${schema}.${path[0]}' in the schema cache`);
  if (READ.includes(method)) return planRead(request, table);
  if (['POST', 'PATCH', 'DELETE'].includes(method)) return planWrite(request, table);
  throw new RestError(405, 'PGRST117', `Unsupported HTTP method: ${method}`);
}

function planCall({ method, schema, path, query, body, prefer, singular }, cache) {
  const s = new Statement();
  const posted = method === 'POST';
  const text = body || '{}';
  let keys, given;
  if (posted) keys = Object.keys(parseBody(text)).sort(); // numbers go on to the database as they came
  else {
    given = new Map(query.filters.filter((param) => !isFilter(param)));
    keys = [...given.keys()].sort();
    query = { ...query, filters: query.filters.filter(isFilter) };
  }
  const f = findFunction(cache, schema, path[1], keys, posted);
  const params = f.params.filter((p) => keys.includes(p.name));
  const passed = params.map((p) => `${ident(p.name)} := ${posted ? `pgrst_body.${ident(p.name)}` : `${s.value(given.get(p.name))}::${p.type}`}`);
  const call = `${qualified(schema, f.name)}(${passed.join(', ')})`;
  const from = posted && params.length ? `${s.body(text, params)}, LATERAL ` : 'FROM ';

  const rows = `pgrst_source AS ${ident(f.row_name)}`;
  const reading = s.read(rows, ident(f.row_name), query); // first: a call returns what its filters name, too
  return {
    ...mainStatement(s, {
      source: f.returns_rows ?
        `SELECT ${returned('pgrst_call', query, s.filtered)} ${from}${call} pgrst_call` :
        `SELECT pgrst_call.pgrst_scalar ${from}(SELECT ${call} pgrst_scalar) pgrst_call`,
      reading,
      json: asJson(f.returns_rows ? '_postgrest_t' : '_postgrest_t.pgrst_scalar', singular || !f.returns_set),
      counted: prefer.count === 'exact' && `SELECT 1 FROM ${rows}${s.where(ident(f.row_name), query)}`,
    }),
    readOnly: !posted || f.read_only,
    settings: f.settings,
    preferences: PREFERENCES.call,
    hasBody: !f.returns_void,
    answer: f.returns_void ? (result) => ({ ...pageFrom()(result), status: 204 }) : pageFrom(query.offset),
  };
}

function planRead({ schema, query, prefer, singular }, table) {
  const s = new Statement();
  const name = qualified(schema, table.name);
  return {
    ...mainStatement(s, {
      source: s.read(name, name, query),
      json: asJson('_postgrest_t', singular),
      counted: prefer.count === 'exact' && `SELECT 1 FROM ${name}${s.where(name, query)}`,
    }),
    readOnly: true,
    preferences: PREFERENCES.read,
    hasBody: true,
    headers: { 'Content-Location': `/${table.name}${query.canonical && `?${query.canonical}`}` },
    answer: pageFrom(query.offset),
  };
}

// Counts up each row that a merge would insert, and down each that is there already;
// true, as a WHERE clause.
const countInserted = (step) => "set_config('pgrst.inserted', (coalesce(nullif(current_setting('pgrst.inserted', true), '')::int, 0) " +
  `${step} 1)::text, true) <> '${step === '+' ? '0' : '-1'}'`;

function planWrite({ method, schema, query, body, prefer, singular }, table) {
  const s = new Statement();
  const name = qualified(schema, table.name);
  const returning = prefer.return === 'representation';
  const back = ` RETURNING ${returning ? returned(name, query, table.key ?? []) : '1'}`;
  const merge = prefer.resolution === 'merge-duplicates';
  let source;

  if (method === 'DELETE') source = `DELETE FROM ${name}${s.where(name, query)}${back}`;
  else {
    const names = query.columns ? nameList(query.columns).sort() : keysOf(parseBody(body));
    const missing = names.find((column) => !Object.hasOwn(table.columns, column));
    if (missing !== undefined)
      throw new RestError(400, 'PGRST204', `Could not find the '${missing}' column of '${table.name}' in the schema cache`);
    const columns = names.map((column) => table.columns[column]);
    const from = s.body(body, columns, { many: /^\s*\[/.test(body), defaults: prefer.missing === 'default' });
    const set = (value) => names.map((column) => `${ident(column)} = ${value}.${ident(column)}`).join(', ');
    if (method === 'PATCH') source = `UPDATE ${name} SET ${set('pgrst_body')} ${from}${s.where(name, query)}${back}`;
    else {
      const target = (query.on_conflict ? nameList(query.on_conflict) : table.key ?? []).map(ident).join(', ');
      const conflict = !prefer.resolution || !target ? '' : ` ON CONFLICT(${target}) ${
        !merge || !names.length ? 'DO NOTHING' : `DO UPDATE SET ${set('EXCLUDED')} WHERE ${countInserted('-')}`}`;
      source = `INSERT INTO ${name}(${names.map(ident).join(', ')}) SELECT ${names.map((column) => `pgrst_body.${ident(column)}`).join(', ')} ` +
        `${from}${merge ? ` WHERE ${countInserted('+')}` : ''}${conflict}${back}`;
    }
  }
  const changed = returning ? 200 : 204;
  return {
    ...mainStatement(s, {
      source,
      reading: returning ? s.read(`pgrst_source AS ${ident(table.name)}`, ident(table.name), { select: query.select, order: query.order, filters: [] }) : undefined,
      json: returning ? asJson('_postgrest_t', singular) : "''",
    }),
    readOnly: false,
    preferences: PREFERENCES[method],
    hasBody: returning,
    answer: {
      POST: ({ total, inserted }) => ({ status: merge && inserted <= 0 ? 200 : 201, range: contentRange(1, 0, total) }),
      PATCH: ({ number, total }) => ({ status: changed, range: contentRange(0, number - 1, total) }),
      DELETE: ({ total }) => ({ status: changed, range: contentRange(1, 0, total) }),
    }[method],
  };
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
//	maxRows		how many rows an answer has at most
export async function startDouble({ connection, secret, schemas, maxRows = Infinity, anonRole = 'anon', extraSearchPath = ['public'], connections = 4 }) {
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
    if (prefer.handling !== 'strict') delete prefer['max-affected'];
    const query = parseQuery(url.searchParams);
    const limit = Math.min(query.limit ?? Infinity, maxRows);
    if (limit < Infinity) query.limit = limit;
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
      ...(main.settings ?? []).map(dynamic),
    ];

    const client = await pool.connect();
    const run = (text, values) => // prepared once per connection
      client.query({ name: createHash('sha1').update(text).digest('hex'), text, values, types: AS_TEXT });
    try {
      await client.query(`BEGIN ISOLATION LEVEL READ COMMITTED ${main.readOnly ? 'READ ONLY' : 'READ WRITE'}`);
      await run(`select ${settings.join(', ')}`, setup.values);
      const { rows: [result] } = await run(main.text, main.values);
      const number = Number(result.page_total);
      if (singular && number !== 1)
        throw new RestError(406, 'PGRST116', 'Cannot coerce the result to a single JSON object', {
          details: `The result contains ${number} rows`,
        });
      if (main.preferences.includes('max-affected') && number > Number(prefer['max-affected'] ?? Infinity))
        throw new RestError(400, 'PGRST124', 'Query result exceeds max-affected preference constraint', {
          details: `The query affects ${number} rows`,
        });
      await client.query('COMMIT');

      const total = prefer.count === 'exact' ? Number(result.total_result_set ?? number) : null;
      const { status, range } = main.answer({ number, total, inserted: Number(result.inserted) });
      const applied = main.preferences.filter((name) => prefer[name]).map((name) => `${name}=${prefer[name]}`).join(', ');
      return {
        status,
        headers: {
          ...(main.hasBody && {
            'Content-Type': `application/${singular ? 'vnd.pgrst.object+json' : 'json'}; charset=utf-8`,
            'Content-Profile': schema,
          }),
          'Content-Range': range,
          ...main.headers,
          ...(applied && { 'Preference-Applied': applied }),
          Vary: 'Accept, Prefer, Range',
        },
        body: status === 416 ? JSON.stringify(beyond(query.offset, total).body) : main.hasBody && method !== 'HEAD' ? result.body : '',
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
        headers: {
          'Content-Type': 'application/json; charset=utf-8',
          'Proxy-Status': `PostgREST; error=${error.body.code}`,
          ...error.headers,
        },
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
