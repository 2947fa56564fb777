#!/usr/bin/env node
// Writes the TypeScript types of schema syncstate, as they are in the database
// of PGHOST, PGDATABASE and so on, to standard output: types of rows and
// arguments, with the comments of the catalogs, and the type Database that
// supabase-js wants.  `make types` runs it against a new database.
//
// A generator of ours, because Supabase's own (postgres-meta) is 200 MB, needs
// a newer Node than Debian 12 has, and lets no argument be null.

import pg from 'pg';

// What the catalogs do not tell: functions that may answer null (a function
// that returns a row then gives one whose columns are all null), arguments that may
// be null and must be given, columns of functions that are never null, and views
// that show columns of a table as they are.
const NULLABLE = ['current_user_id', 'get_sync_state', 'next_sync_due'];
const NULLABLE_ARGS = ['mark_channel_opened.expires_at'];
const NOT_NULL_COLUMNS = {
  claim_push_channels: ['user_id', 'account', 'source', 'resource', 'action', 'lease', 'lease_expires_at', 'failures'],
  request_account: ['source', 'resource'],
  set_sync_resources: ['resource', 'change'],
};
const COPIES = { my_sync_runs: 'sync_run', my_syncs: 'sync_state' };

const RELATIONS = `
  SELECT c.relname AS name, c.relkind = 'v' AS is_view, obj_description(c.oid, 'pg_class') AS comment,
    json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, NULL),
      'not_null', a.attnotnull, 'has_default', a.atthasdef, 'comment', col_description(c.oid, a.attnum))
      ORDER BY a.attnum) AS columns
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  WHERE c.relnamespace = 'syncstate'::regnamespace AND c.relkind IN ('r', 'v')
  GROUP BY c.oid ORDER BY c.relkind, c.relname COLLATE "C"`;

// Not the triggers, nor what takes arguments that JSON has no words for, nor what
// only check_installation() calls.
const FUNCTIONS = `
  SELECT p.proname AS name, obj_description(p.oid, 'pg_proc') AS comment,
    format_type(p.prorettype, NULL) AS returns, p.proretset AS returns_set, c.relname AS returns_row,
    a.args, a.columns
  FROM pg_proc AS p JOIN pg_type AS t ON t.oid = p.prorettype LEFT JOIN pg_class AS c ON c.oid = t.typrelid,
    LATERAL (SELECT json_agg(json_build_object('name', a.name, 'type', format_type(a.type, NULL),
          'default', pg_get_function_arg_default(p.oid, a.at::int)) ORDER BY a.at) FILTER (WHERE a.mode IS NULL OR a.mode IN ('i', 'b')) AS args,
        json_agg(json_build_object('name', a.name, 'type', format_type(a.type, NULL)) ORDER BY a.at) FILTER (WHERE a.mode IN ('o', 'b', 't')) AS columns
      FROM unnest(p.proargnames, coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargmodes)
        WITH ORDINALITY AS a (name, type, mode, at)) AS a
  WHERE p.pronamespace = 'syncstate'::regnamespace AND p.prorettype <> 'trigger'::regtype
    AND p.proname NOT IN ('present_objects', 'installed_objects')
    AND NOT EXISTS (SELECT FROM pg_type AS a WHERE a.oid = ANY(p.proargtypes) AND (a.typtype = 'c' OR a.typname LIKE 'reg%'))
  ORDER BY p.proname COLLATE "C"`;

const ENUMS = `
  SELECT t.typname AS name, obj_description(t.oid, 'pg_type') AS comment,
    json_agg(e.enumlabel ORDER BY e.enumsortorder) AS labels
  FROM pg_type AS t JOIN pg_enum AS e ON e.enumtypid = t.oid
  WHERE t.typnamespace = 'syncstate'::regnamespace
  GROUP BY t.oid ORDER BY t.typname COLLATE "C"`;

const db = new pg.Client();
await db.connect();
await db.query("SET search_path = ''");
const { rows: relations } = await db.query(RELATIONS);
const { rows: functions } = await db.query(FUNCTIONS);
const { rows: enums } = await db.query(ENUMS);
await db.end();
if (!relations.length) throw new Error('this database has no schema syncstate');

const camel = (name) => name.replace(/(^|_)([a-z0-9])/g, (_, __, letter) => letter.toUpperCase());
const own = (type) => /^syncstate\.(\w+)$/.exec(type)?.[1];

// The type of a value in JSON.  A bigint comes as a number, and goes there as
// text too, which is exact beyond 2^53.
const SCALARS = {
  bigint: ['number', 'number | string'], integer: ['number'], smallint: ['number'], 'double precision': ['number'],
  boolean: ['boolean'], void: ['undefined'], jsonb: ['Json'],
  text: ['string'], name: ['string'], bytea: ['string'], uuid: ['string'], interval: ['string'], 'timestamp with time zone': ['string'],
};
function type(name, sent = false) {
  if (name.endsWith('[]')) return `${type(name.slice(0, -2), sent)}[]`;
  if (own(name)) return camel(own(name));
  if (!SCALARS[name]) throw new Error(`no TypeScript type is known for ${name}`);
  return SCALARS[name][sent ? 1 : 0] ?? SCALARS[name][0];
}

const comment = (text, indent = '') => (text ? `${indent}/** ${text.replaceAll('*/', '* /')}. */\n` : '');

// A named type for each relation and for the arguments of each function.
let out = `// TypeScript types of the PostgreSQL extension syncstate, for supabase-js or any
// other client that reads its rows as JSON.  Made from the catalogs: \`make types\`.
//
// Times come as text (ISO 8601), and so do intervals ("00:15:00"; in arguments
// also "15 minutes"), and bytes ("\\x00ff").  A bigint comes as a number, which
// JavaScript rounds beyond 2^53; give it as text, and read it with
// .select('lease::text'), to be exact.

export type Json = string | number | boolean | null | { [key: string]: Json | undefined } | Json[];

`;

for (const e of enums)
  out += `${comment(e.comment)}export type ${camel(e.name)} =${e.labels.map((label) => `\n  | '${label}'`).join('')};\n\n`;

for (const r of relations) {
  const original = relations.find((o) => o.name === COPIES[r.name])?.columns;
  out += `${comment(r.comment)}export type ${camel(r.name)} = {\n`;
  for (const c of r.columns) {
    const source = original?.find((o) => o.name === c.name);
    out += comment(c.comment ?? source?.comment, '  ');
    out += `  ${c.name}: ${type(c.type)}${(source ?? c).not_null ? '' : ' | null'};\n`;
  }
  out += '};\n\n';
}

for (const f of functions.filter((f) => f.args)) {
  out += `/** Arguments of ${f.name}(). */\nexport type ${camel(f.name)}Args = {\n`;
  for (const a of f.args) {
    const nullable = a.default?.startsWith('NULL') || NULLABLE_ARGS.includes(`${f.name}.${a.name}`) ? ' | null' : '';
    out += `  ${a.name}${a.default === null ? '' : '?'}: ${type(a.type, true)}${nullable};\n`;
  }
  out += '};\n\n';
}

out += '/** What createClient<Database>() of supabase-js takes. */\nexport type Database = {\n  syncstate: {\n    Tables: {\n';
for (const r of relations.filter((r) => !r.is_view)) {
  const written = (optional) => r.columns.map((c) => {
    const value = type(c.type, true) + (c.not_null ? '' : ' | null');
    return `\n          ${c.name}${optional(c) ? '?' : ''}: ${value};`;
  }).join('');
  out += `      ${r.name}: {\n        Row: ${camel(r.name)};\n` +
    `        Insert: {${written((c) => !c.not_null || c.has_default)}\n        };\n` +
    `        Update: {${written(() => true)}\n        };\n        Relationships: [];\n      };\n`;
}
out += '    };\n    Views: {\n';
for (const r of relations.filter((r) => r.is_view))
  out += `      ${r.name}: {\n        Row: ${camel(r.name)};\n        Relationships: [];\n      };\n`;
out += '    };\n    Functions: {\n';
for (const f of functions) {
  let returns = f.columns
    ? `{${f.columns.map((c) => `\n          ${c.name}: ${type(c.type)}${NOT_NULL_COLUMNS[f.name]?.includes(c.name) ? '' : ' | null'};`).join('')}\n        }`
    : type(f.returns);
  if (NULLABLE.includes(f.name))
    returns = f.returns_row ? `{ [Column in keyof ${returns}]: ${returns}[Column] | null }` : `${returns} | null`;
  out += comment(f.comment, '      ');
  out += `      ${f.name}: {\n        Args: ${f.args ? `${camel(f.name)}Args` : 'Record<PropertyKey, never>'};\n` +
    `        Returns: ${returns}${f.returns_set ? '[]' : ''};\n`;
  if (f.returns_row)
    out += `        SetofOptions: {\n          from: '*';\n          to: '${f.returns_row}';\n` +
      `          isOneToOne: ${!f.returns_set};\n          isSetofReturn: ${f.returns_set};\n        };\n`;
  out += '      };\n';
}
out += '    };\n    Enums: {\n';
for (const e of enums) out += `      ${e.name}: ${camel(e.name)};\n`;
out += '    };\n    CompositeTypes: { [_ in never]: never };\n  };\n};\n\n';

for (const e of enums)
  out += `/** The labels of ${camel(e.name)}, in their order. */\nexport const ${e.name.toUpperCase()}_LABELS = [\n` +
    `${e.labels.map((label) => `  '${label}',\n`).join('')}] as const satisfies readonly ${camel(e.name)}[];\n\n`;

process.stdout.write(out.trimEnd() + '\n');
