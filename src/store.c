/*
 * store.c: what is done by statements: kept plans, and the functions that run them
 *
 * The only file with SQL in it.  Every name in it is qualified and every column
 * listed, since a kept plan is analyzed again under whatever search_path the
 * call has.  Statements run as the caller, so privileges and row security
 * decide.  The callers are connected to SPI; what a function returns in
 * pointers lives until SPI_finish(), except for a row that was written, which is
 * copied into the caller's outer context.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "jit/jit.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "optimizer/cost.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "catalog.h"
#include "store.h"
#include "syncstate.h"

/* All columns of row s, and a comma after the last. */
#define SELECTED(name, kind, writer) "s." #name ", "
#define COLUMNS			SYNC_STATE_COLUMNS(SELECTED)

/*
 * The row of a table as one value.  Its alias alone would mean a column, if
 * somebody added one of that name.
 */
#define ROW_OF(alias, table)	"(" #alias ".*)::syncstate." #table

/* The key of row s is in $1 to $4. */
#define KEY_MATCHES \
	"s.user_id OPERATOR(pg_catalog.=) $1 " \
	"AND s.account OPERATOR(pg_catalog.=) $2 " \
	"AND s.source OPERATOR(pg_catalog.=) $3 " \
	"AND s.resource OPERATOR(pg_catalog.=) $4"
#define KEY_TYPES		UUIDOID, TEXTOID, ARG_SOURCE, TEXTOID
#define KEY_ARGS		NUM_KEY_COLUMNS, {KEY_TYPES}

/* The rows of an account, of some sources. */
#define ACCOUNT_MATCHES \
	"s.user_id OPERATOR(pg_catalog.=) $1 " \
	"AND s.account OPERATOR(pg_catalog.=) $2 " \
	"AND s.source OPERATOR(pg_catalog.=) ANY ($3)"
#define ACCOUNT_ARGS	3, {UUIDOID, TEXTOID, ARG_SOURCES}

/* The assignments of what we write from row $2, but for the status. */
#define ASSIGNED(name, kind, writer) ASSIGNED_##writer(name)
#define ASSIGNED_KEY(name)
#define ASSIGNED_STATUS(name)
#define ASSIGNED_CLIENT(name)	", " #name " = ($2)." #name
#define ASSIGNED_OURS(name)		ASSIGNED_CLIENT(name)
#define ASSIGNED_MADE(name)
#define ASSIGNMENTS		SYNC_STATE_COLUMNS(ASSIGNED)

/* The columns of row r, null replaced where a column cannot be null. */
#define REPLACED(name, kind, writer) REPLACED_##kind(#name)
#define REPLACED_UUID(name)			"r." name ", "
#define REPLACED_SOURCE(name)		"r." name ", "
#define REPLACED_NAME(name)			"r." name ", "
#define REPLACED_STATUS(name)		"COALESCE(r." name ", 'idle'::syncstate.sync_status), "
#define REPLACED_TOKEN(name)		"r." name ", "
#define REPLACED_HISTORY_ID(name)	"r." name ", "
#define REPLACED_REASON(name)		"r." name ", "
#define REPLACED_MESSAGE(name)		"r." name ", "
#define REPLACED_TIME(name)			"r." name ", "
#define REPLACED_INTERVAL(name)		"r." name ", "
#define REPLACED_NUMBER(name)		"COALESCE(r." name ", 0::pg_catalog.int8), "
#define REPLACED_COUNT(name)		"r." name ", "
#define REPLACED_INTEGER(name)		"COALESCE(r." name ", 0), "
#define REPLACED_TALLY(name)		REPLACED_INTEGER(name)
#define REPLACED_AMOUNT(name)		"r." name ", "
#define REPLACED_FLAG(name)			"COALESCE(r." name ", false), "
#define CHANGED_COLUMNS				SYNC_STATE_COLUMNS(REPLACED)

#define SET_SETTING(name, kind, least, most, builtin) ", " #name " = ($2)." #name
#define SETTINGS_ASSIGNED			SYNC_POLICY_SETTINGS(SET_SETTING)
#define NULL_SETTING(name, kind, least, most, builtin) " AND p." #name " IS NULL"
#define SETTINGS_ARE_NULL			SYNC_POLICY_SETTINGS(NULL_SETTING)

#define BUDGET_COLUMN(name, c_type, sql_type) ", b." #name
#define BUDGET_COLUMNS				SYNC_BUDGET_COLUMNS(BUDGET_COLUMN)
#define BUDGET_NAME(name, c_type, sql_type) ", " #name
#define BUDGET_NAMES				SYNC_BUDGET_COLUMNS(BUDGET_NAME)
#define BUDGET_ASSIGNMENT(name, c_type, sql_type) ", " #name " = EXCLUDED." #name
#define BUDGET_ASSIGNED				SYNC_BUDGET_COLUMNS(BUDGET_ASSIGNMENT)

/* The columns of a channel, but for its id; the same of row $1; and assigned from it. */
#define KEY_NAME(name, kind, writer)	#name ", "
#define KEY_OF_ROW(name, kind, writer)	"($1)." #name ", "
#define CHANNEL_NAME(name, kind)		", " #name
#define CHANNEL_OF_ROW(name, kind)		", ($1)." #name
#define CHANNEL_ASSIGNED(name, kind)	", " #name " = ($1)." #name

/* Channel c is that of row $1. */
#define CHANNEL_MATCHES \
	"c.user_id OPERATOR(pg_catalog.=) ($1).user_id " \
	"AND c.account OPERATOR(pg_catalog.=) ($1).account " \
	"AND c.source OPERATOR(pg_catalog.=) ($1).source " \
	"AND c.resource OPERATOR(pg_catalog.=) ($1).resource " \
	"AND c.id OPERATOR(pg_catalog.=) ($1).id"

/* The columns of rows that are written all at once, from the array $1. */
#define NEWS_COLUMN(name)			", " #name
#define OF_ELEMENT(name)			", r." #name

typedef enum PlanId
{
	PLAN_READ,
	PLAN_LOCK,
	PLAN_LOCK_VERSION,
	PLAN_SEES,
	PLAN_MAKE,
	PLAN_LIMIT,
	PLAN_WRITE,
	PLAN_DELETE,
	PLAN_TAKE,
	PLAN_REQUEST_LOCK,
	PLAN_REQUEST,
	PLAN_CHANGE,
	PLAN_PARKED,
	PLAN_ACCOUNT,
	PLAN_POLICY_CHANGES,
	PLAN_POLICY_MAKE,
	PLAN_POLICY_WRITE,
	PLAN_POLICY_PAUSE,
	PLAN_POLICY_RESYNC,
	PLAN_POLICY_TIDY,
	PLAN_BUDGET,
	PLAN_BUDGET_WRITE,
	PLAN_BUDGET_DROP,
	PLAN_RATES,
	PLAN_EVENTS,
	PLAN_EVENTS_OLDEST,
	PLAN_EVENTS_TRIM,
	PLAN_EVENTS_TAKE,
	PLAN_RUNS,
	PLAN_RUNS_OLDEST,
	PLAN_RUNS_TRIM,
	PLAN_CHANNELS_ANY,
	PLAN_CHANNELS_MATCH,
	PLAN_CHANNELS_DUE,
	PLAN_CHANNEL_ACTIVE,
	PLAN_CHANNEL,
	PLAN_CHANNEL_LOCK,
	PLAN_CHANNEL_LOCK_LEASED,
	PLAN_CHANNEL_MAKE,
	PLAN_CHANNEL_WRITE,
	PLAN_CHANNEL_DROP,
	PLAN_CHANNEL_TRY,
	NUM_PLANS,
} PlanId;

/* Parameter types of ours, whose OIDs are not constants. */
#define ARG_SOURCE		((Oid) 1)
#define ARG_STATE		((Oid) 2)
#define ARG_POLICY		((Oid) 3)
#define ARG_SOURCES		((Oid) 4)
#define ARG_EVENTS		((Oid) 5)
#define ARG_RUNS		((Oid) 6)
#define ARG_CHANNEL		((Oid) 7)

#define MAX_PLAN_ARGS	8

typedef struct PlanText
{
	const char *sql;
	int			nargs;
	Oid			args[MAX_PLAN_ARGS];
	enum
	{
		BY_KEY,
		READ_ONLY,				/* sees what the caller's snapshot sees */
		READS_ALL,				/* of a source, so by a sequential scan */
	}			kind;
} PlanText;

/* All of them return rows, as what a portal is opened for must. */
static const PlanText plan_texts[NUM_PLANS] = {
	[PLAN_READ] = {
		"SELECT " COLUMNS "s.ctid FROM syncstate.sync_state AS s "
		"WHERE " KEY_MATCHES,
		KEY_ARGS, BY_KEY
	},
	[PLAN_LOCK] = {
		"SELECT " COLUMNS "s.ctid FROM syncstate.sync_state AS s "
		"WHERE " KEY_MATCHES " FOR NO KEY UPDATE",
		KEY_ARGS, BY_KEY
	},
	[PLAN_LOCK_VERSION] = {
		"SELECT " COLUMNS "s.ctid FROM syncstate.sync_state AS s "
		"WHERE s.ctid OPERATOR(pg_catalog.=) $1 "
		"FOR NO KEY UPDATE SKIP LOCKED",
		1, {TIDOID}, BY_KEY
	},
	[PLAN_SEES] = {
		"SELECT FROM syncstate.sync_state AS s "
		"WHERE s.ctid OPERATOR(pg_catalog.=) $1",
		1, {TIDOID}, READ_ONLY
	},
	[PLAN_MAKE] = {
		"INSERT INTO syncstate.sync_state (user_id, account, source, resource, "
		"limited_until) VALUES ($1, $2, $3, $4, $5) "
		"ON CONFLICT (user_id, account, source, resource) DO NOTHING "
		"RETURNING true",
		NUM_KEY_COLUMNS + 1, {KEY_TYPES, TIMESTAMPTZOID}, BY_KEY
	},
	[PLAN_LIMIT] = {
		"SELECT pg_catalog.max(s.limited_until) FROM syncstate.sync_state AS s "
		"WHERE " ACCOUNT_MATCHES,
		ACCOUNT_ARGS, BY_KEY
	},
	[PLAN_WRITE] = {
		"UPDATE syncstate.sync_state AS s SET status = ($2).status" ASSIGNMENTS
		" WHERE s.ctid OPERATOR(pg_catalog.=) $1 RETURNING " ROW_OF(s, sync_state),
		2, {TIDOID, ARG_STATE}, BY_KEY
	},
	[PLAN_DELETE] = {
		"DELETE FROM syncstate.sync_state AS s WHERE " KEY_MATCHES
		" RETURNING true",
		KEY_ARGS, BY_KEY
	},
	[PLAN_TAKE] = {
		"DELETE FROM syncstate.sync_state AS s WHERE " KEY_MATCHES
		" RETURNING " ROW_OF(s, sync_state),
		KEY_ARGS, BY_KEY
	},

	/* these two touch no column that a user role may not */
	[PLAN_REQUEST_LOCK] = {
		"SELECT s.status, s.due_at, s.requested_at, s.parked_reason, "
		"s.sync_interval, s.last_sync_at, s.failures, s.updated_at, "
		"s.limited_until "
		"FROM syncstate.sync_state AS s "
		"WHERE " KEY_MATCHES " FOR NO KEY UPDATE",
		KEY_ARGS, BY_KEY
	},
	[PLAN_REQUEST] = {
		"UPDATE syncstate.sync_state AS s SET requested_at = $5 "
		"WHERE " KEY_MATCHES " RETURNING true",
		NUM_KEY_COLUMNS + 1, {KEY_TYPES, TIMESTAMPTZOID}, BY_KEY
	},

	[PLAN_CHANGE] = {
		"SELECT " CHANGED_COLUMNS "s.ctid FROM syncstate.sync_state AS s, "
		"LATERAL pg_catalog.jsonb_populate_record(s.*, $2) AS r "
		"WHERE s.ctid OPERATOR(pg_catalog.=) $1",
		2, {TIDOID, JSONBOID}, BY_KEY
	},

	/*
	 * In the order of the key, as rows are locked.  It touches no column that a
	 * user role may not.
	 */
	[PLAN_ACCOUNT] = {
		"SELECT s.source, s.resource FROM syncstate.sync_state AS s "
		"WHERE " ACCOUNT_MATCHES " ORDER BY s.source, s.resource",
		ACCOUNT_ARGS, BY_KEY
	},

	/* in the order of the key */
	[PLAN_PARKED] = {
		"SELECT s.user_id, s.account, s.resource FROM syncstate.sync_state AS s "
		"WHERE s.source OPERATOR(pg_catalog.=) $1 AND s.due_at IS NULL "
		"AND s.parked_reason OPERATOR(pg_catalog.=) ANY ($2) "
		"ORDER BY s.user_id, s.account, s.source, s.resource LIMIT $3",
		3, {ARG_SOURCE, TEXTARRAYOID, INT8OID}, READS_ALL
	},

	/* the row as it would be; locks what is there */
	[PLAN_POLICY_CHANGES] = {
		"SELECT " ROW_OF(r, sync_policy) " FROM (SELECT " ROW_OF(p, sync_policy)
		" AS policy FROM syncstate.sync_policy AS p "
		"WHERE p.source OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE) AS l, "
		"LATERAL pg_catalog.jsonb_populate_record(l.policy, $2) AS r",
		2, {ARG_SOURCE, JSONBOID}, BY_KEY
	},
	[PLAN_POLICY_MAKE] = {
		"INSERT INTO syncstate.sync_policy (source) VALUES ($1) "
		"ON CONFLICT (source) DO NOTHING RETURNING true",
		1, {ARG_SOURCE}, BY_KEY
	},
	[PLAN_POLICY_WRITE] = {
		"UPDATE syncstate.sync_policy AS p SET source = p.source"
		SETTINGS_ASSIGNED
		" WHERE p.source OPERATOR(pg_catalog.=) $1 RETURNING true",
		2, {ARG_SOURCE, ARG_POLICY}, BY_KEY
	},
	[PLAN_POLICY_PAUSE] = {
		"INSERT INTO syncstate.sync_policy AS p (source, paused_until) "
		"VALUES ($1, $2) ON CONFLICT (source) DO UPDATE "
		"SET paused_until = EXCLUDED.paused_until "
		"WHERE NOT $3 OR p.paused_until IS NULL "
		"OR p.paused_until OPERATOR(pg_catalog.<) EXCLUDED.paused_until "
		"RETURNING true",
		3, {ARG_SOURCE, TIMESTAMPTZOID, BOOLOID}, BY_KEY
	},
	[PLAN_POLICY_RESYNC] = {
		"INSERT INTO syncstate.sync_policy AS p (source, resync_from, "
		"resync_spread) VALUES ($1, $2, $3) ON CONFLICT (source) DO UPDATE "
		"SET resync_from = EXCLUDED.resync_from, "
		"resync_spread = EXCLUDED.resync_spread RETURNING true",
		3, {ARG_SOURCE, TIMESTAMPTZOID, INTERVALOID}, BY_KEY
	},
	[PLAN_POLICY_TIDY] = {
		"DELETE FROM syncstate.sync_policy AS p "
		"WHERE p.source OPERATOR(pg_catalog.=) $1" SETTINGS_ARE_NULL
		" RETURNING true",
		1, {ARG_SOURCE}, BY_KEY
	},

	[PLAN_BUDGET] = {
		"SELECT b.source" BUDGET_COLUMNS " FROM syncstate.sync_budget AS b "
		"WHERE b.source OPERATOR(pg_catalog.=) $1",
		1, {ARG_SOURCE}, BY_KEY
	},
	[PLAN_BUDGET_WRITE] = {
		"INSERT INTO syncstate.sync_budget AS b (source" BUDGET_NAMES ") "
		"VALUES ($1, $2, $3, $4, $5, $6, $7, $8) "
		"ON CONFLICT (source) DO UPDATE SET source = b.source" BUDGET_ASSIGNED
		" RETURNING true",
		8, {ARG_SOURCE, FLOAT8OID, FLOAT8OID, FLOAT8OID, FLOAT8OID,
		TIMESTAMPTZOID, FLOAT8OID, INT8OID}, BY_KEY
	},
	[PLAN_BUDGET_DROP] = {
		"DELETE FROM syncstate.sync_budget AS b "
		"WHERE b.source OPERATOR(pg_catalog.=) $1 RETURNING true",
		1, {ARG_SOURCE}, BY_KEY
	},

	/*
	 * The rates of a source, in buckets of a sixteenth of an octave; keep in
	 * sync with syncstate_change_rate().  One bucket more has the rows with
	 * their own interval and those whose push channel is trusted at time $5, which
	 * are synced each $6 seconds, if their own interval is not longer, and at each
	 * change; another has the parked ones.
	 */
	[PLAN_RATES] = {
		"SELECT pg_catalog.min(g.kind), pg_catalog.count(*), "
		"pg_catalog.avg(g.root), pg_catalog.sum((1.0::pg_catalog.float8 "
		"OPERATOR(pg_catalog./) g.seconds) OPERATOR(pg_catalog.+) "
		"CASE WHEN g.has_push THEN g.root OPERATOR(pg_catalog.*) g.root "
		"ELSE 0.0::pg_catalog.float8 END), "
		"pg_catalog.sum(g.changes_seen), "
		"pg_catalog.sum(g.seconds_watched), "
		"pg_catalog.sum(g.syncs_started::pg_catalog.float8), "
		"pg_catalog.count(*) FILTER (WHERE g.due_at "
		"OPERATOR(pg_catalog.<) $4), "
		"pg_catalog.count(*) FILTER (WHERE g.created_at "
		"OPERATOR(pg_catalog.>) $3) "
		"FROM (SELECT s.syncs_started, s.due_at, s.created_at, s.changes_seen, "
		"s.seconds_watched, s.has_push, "
		"CASE WHEN s.due_at IS NULL THEN 2 "
		"WHEN s.sync_interval IS NOT NULL OR s.has_push THEN 1 ELSE 0 END AS kind, "
		"CASE WHEN s.has_push THEN GREATEST($6, "
		"pg_catalog.date_part('epoch', s.sync_interval)) "
		"ELSE pg_catalog.date_part('epoch', s.sync_interval) END AS seconds, "
		"pg_catalog.sqrt(GREATEST((COALESCE(s.changes_seen, "
		"0.0::pg_catalog.float8) OPERATOR(pg_catalog.+) "
		"1.0::pg_catalog.float8) OPERATOR(pg_catalog./) "
		"(COALESCE(s.seconds_watched, 0.0::pg_catalog.float8) "
		"OPERATOR(pg_catalog.+) (1.0::pg_catalog.float8 "
		"OPERATOR(pg_catalog./) $2)), CASE WHEN s.changes_seen "
		"OPERATOR(pg_catalog.>=) 1.0::pg_catalog.float8 "
		"AND s.seconds_watched "
		"OPERATOR(pg_catalog.>=) 1.0::pg_catalog.float8 "
		"THEN s.changes_seen OPERATOR(pg_catalog./) s.seconds_watched "
		"END)) AS root "
		"FROM (SELECT r.syncs_started, r.due_at, r.created_at, r.changes_seen, "
		"r.seconds_watched, r.sync_interval, "
		"(r.push_until OPERATOR(pg_catalog.>) $5) IS TRUE AS has_push "
		"FROM syncstate.sync_state AS r "
		"WHERE r.source OPERATOR(pg_catalog.=) $1) AS s) AS g "
		"GROUP BY g.kind, CASE WHEN g.kind OPERATOR(pg_catalog.=) 0 "
		"THEN pg_catalog.floor(pg_catalog.ln(g.root) "
		"OPERATOR(pg_catalog.*) 46.166::pg_catalog.float8) END",
		6, {ARG_SOURCE, FLOAT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
		FLOAT8OID}, READS_ALL
	},

	[PLAN_EVENTS] = {
		"WITH told AS (INSERT INTO syncstate.sync_event (id" SYNC_EVENT_COLUMNS(NEWS_COLUMN) ") "
		"SELECT pg_catalog.gen_random_uuid()" SYNC_EVENT_COLUMNS(OF_ELEMENT)
		" FROM pg_catalog.unnest($1) AS r) SELECT true",
		1, {ARG_EVENTS}, BY_KEY
	},
	[PLAN_EVENTS_OLDEST] = {
		"SELECT e.ctid, e.at FROM syncstate.sync_event AS e "
		"WHERE e.at OPERATOR(pg_catalog.>=) $1 ORDER BY e.at, e.id LIMIT $2",
		2, {TIMESTAMPTZOID, INT8OID}, BY_KEY
	},
	[PLAN_EVENTS_TRIM] = {
		"DELETE FROM syncstate.sync_event AS e "
		"WHERE e.ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT l.ctid FROM syncstate.sync_event AS l "
		"WHERE l.ctid OPERATOR(pg_catalog.=) ANY ($1) "
		"AND l.at OPERATOR(pg_catalog.<=) $2 FOR UPDATE SKIP LOCKED)) "
		"RETURNING true",
		2, {TIDARRAYOID, TIMESTAMPTZOID}, BY_KEY
	},
	[PLAN_EVENTS_TAKE] = {
		"WITH taken AS (DELETE FROM syncstate.sync_event AS e "
		"WHERE e.ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT l.ctid FROM syncstate.sync_event AS l "
		"ORDER BY l.at, l.id LIMIT $1 FOR UPDATE SKIP LOCKED)) "
		"RETURNING " ROW_OF(e, sync_event) " AS event, e.at, e.id) "
		"SELECT t.event FROM taken AS t ORDER BY t.at, t.id",
		1, {INT8OID}, BY_KEY
	},

	/*
	 * A key may have a lease for a second time only by hand; whoever ends its run
	 * has its row locked.  ON CONFLICT would cost as much as all the rest of a
	 * cycle.  A cursor has to return something; a row for each run would be copied
	 * twice on its way.
	 */
	[PLAN_RUNS] = {
		"WITH kept AS (INSERT INTO syncstate.sync_run (user_id" SYNC_RUN_COLUMNS(NEWS_COLUMN) ") "
		"SELECT r.user_id" SYNC_RUN_COLUMNS(OF_ELEMENT) " FROM pg_catalog.unnest($1) AS r "
		"WHERE NOT EXISTS (SELECT FROM syncstate.sync_run AS o "
		"WHERE o.user_id OPERATOR(pg_catalog.=) r.user_id "
		"AND o.account OPERATOR(pg_catalog.=) r.account "
		"AND o.source OPERATOR(pg_catalog.=) r.source "
		"AND o.resource OPERATOR(pg_catalog.=) r.resource "
		"AND o.lease OPERATOR(pg_catalog.=) r.lease)) SELECT true",
		1, {ARG_RUNS}, BY_KEY
	},
	[PLAN_RUNS_OLDEST] = {
		"SELECT r.ctid, r.ended_at FROM syncstate.sync_run AS r "
		"WHERE r.source OPERATOR(pg_catalog.=) $3 "
		"AND r.ended_at OPERATOR(pg_catalog.>=) $1 "
		"ORDER BY r.ended_at LIMIT $2",
		3, {TIMESTAMPTZOID, INT8OID, ARG_SOURCE}, BY_KEY
	},
	[PLAN_RUNS_TRIM] = {
		"DELETE FROM syncstate.sync_run AS r "
		"WHERE r.ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
		"SELECT l.ctid FROM syncstate.sync_run AS l "
		"WHERE l.ctid OPERATOR(pg_catalog.=) ANY ($1) "
		"AND l.ended_at OPERATOR(pg_catalog.<=) $2 "
		"AND l.source OPERATOR(pg_catalog.=) $3 FOR UPDATE SKIP LOCKED)) "
		"RETURNING true",
		3, {TIDARRAYOID, TIMESTAMPTZOID, ARG_SOURCE}, BY_KEY
	},

	[PLAN_CHANNELS_ANY] = {
		"SELECT FROM syncstate.sync_channel AS c "
		"WHERE c.source OPERATOR(pg_catalog.=) $1 LIMIT 1",
		1, {ARG_SOURCE}, BY_KEY
	},

	/*
	 * Makes the channels of source $1 match its rows, all of them if it uses
	 * push, or else none.  A row that is not parked and has no channel gets one
	 * that is to be opened.  A channel whose row is gone, or is another one that
	 * was made since, is to be stopped, or forgotten if it was not opened.  One
	 * that waited for its row to return waits no more, nor one that would wait
	 * until after $5, since a clock was wrong.  Leases tell when a channel and its
	 * row were made, unless somebody has chosen other numbers, which may even be
	 * greater than $6, the number of now.  push.c has the same rule for one channel.
	 *
	 * By the versions that were read: whatever changed meanwhile is left alone.
	 */
	[PLAN_CHANNELS_MATCH] = {
		"WITH wrong AS MATERIALIZED ("
		"SELECT s.user_id, s.account, s.resource, c.tid, c.is_open, "
		"s.is_there IS NOT TRUE OR (c.lease OPERATOR(pg_catalog.<) s.made) IS TRUE AS is_over "
		"FROM (SELECT r.user_id, r.account, r.resource, r.due_at IS NOT NULL AS is_due, "
		"COALESCE(r.parked_reason OPERATOR(pg_catalog.<>) 'gone', true) AS is_there, "
		"CASE WHEN r.lease OPERATOR(pg_catalog.-) r.syncs_started OPERATOR(pg_catalog.<=) $6 "
		"THEN r.lease OPERATOR(pg_catalog.-) r.syncs_started END AS made "
		"FROM syncstate.sync_state AS r "
		"WHERE $2 AND r.source OPERATOR(pg_catalog.=) $1) AS s "
		"FULL JOIN (SELECT h.user_id, h.account, h.resource, h.ctid AS tid, "
		"h.channel_id IS NOT NULL AS is_open, "
		"CASE WHEN h.lease OPERATOR(pg_catalog.>=) " CppAsString2(LEASE_BY_CLOCK) " THEN h.lease END AS lease, "
		"h.renew_at IS NULL OR (h.renew_at OPERATOR(pg_catalog.>) $5 "
		"AND (h.state OPERATOR(pg_catalog.<>) 'active' "
		"OR h.renew_at OPERATOR(pg_catalog.>) h.expires_at)) AS waits "
		"FROM syncstate.sync_channel AS h "
		"WHERE h.source OPERATOR(pg_catalog.=) $1 "
		"AND h.state OPERATOR(pg_catalog.<>) 'retiring') AS c "
		"ON s.user_id OPERATOR(pg_catalog.=) c.user_id "
		"AND s.account OPERATOR(pg_catalog.=) c.account "
		"AND s.resource OPERATOR(pg_catalog.=) c.resource "
		"WHERE CASE WHEN c.tid IS NULL THEN s.is_due "
		"ELSE s.is_there IS NOT TRUE OR (s.is_due AND c.waits) "
		"OR c.lease OPERATOR(pg_catalog.<) s.made END "
		"LIMIT $3), "
		"made AS (INSERT INTO syncstate.sync_channel AS c "
		"(user_id, account, source, resource, renew_at) "
		"SELECT w.user_id, w.account, $1, w.resource, $4 FROM wrong AS w "
		"WHERE w.tid IS NULL ON CONFLICT DO NOTHING), "
		"locked AS MATERIALIZED (SELECT c.ctid, w.is_over, w.is_open "
		"FROM wrong AS w JOIN syncstate.sync_channel AS c "
		"ON c.ctid OPERATOR(pg_catalog.=) w.tid FOR UPDATE OF c SKIP LOCKED), "
		"retired AS (UPDATE syncstate.sync_channel AS c SET state = 'retiring', "
		"renew_at = $4, lease_expires_at = NULL, failures = 0, error_message = NULL "
		"FROM locked AS l WHERE c.ctid OPERATOR(pg_catalog.=) l.ctid "
		"AND l.is_over AND l.is_open), "
		"dropped AS (DELETE FROM syncstate.sync_channel AS c USING locked AS l "
		"WHERE c.ctid OPERATOR(pg_catalog.=) l.ctid AND l.is_over AND NOT l.is_open), "
		"woken AS (UPDATE syncstate.sync_channel AS c SET renew_at = $4 "
		"FROM locked AS l WHERE c.ctid OPERATOR(pg_catalog.=) l.ctid "
		"AND NOT l.is_over) "
		"SELECT pg_catalog.count(*) FROM wrong",
		6, {ARG_SOURCE, BOOLOID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID}, READS_ALL
	},

	/*
	 * What is to be done, oldest first; the caller must see the row of a channel.
	 * While a former channel of the row is due to be stopped, the others wait.
	 */
	[PLAN_CHANNELS_DUE] = {
		"SELECT " ROW_OF(c, sync_channel)
		", s.due_at IS NULL AS is_parked, s.limited_until "
		"FROM syncstate.sync_channel AS c "
		"LEFT JOIN syncstate.sync_state AS s "
		"ON s.user_id OPERATOR(pg_catalog.=) c.user_id "
		"AND s.account OPERATOR(pg_catalog.=) c.account "
		"AND s.source OPERATOR(pg_catalog.=) c.source "
		"AND s.resource OPERATOR(pg_catalog.=) c.resource "
		"LEFT JOIN LATERAL (SELECT true AS is_due FROM syncstate.sync_channel AS o "
		"WHERE o.user_id OPERATOR(pg_catalog.=) c.user_id "
		"AND o.account OPERATOR(pg_catalog.=) c.account "
		"AND o.source OPERATOR(pg_catalog.=) c.source "
		"AND o.resource OPERATOR(pg_catalog.=) c.resource "
		"AND o.state OPERATOR(pg_catalog.=) 'retiring' "
		"AND o.renew_at OPERATOR(pg_catalog.<=) $2 LIMIT 1) AS stop ON true "
		"WHERE c.source OPERATOR(pg_catalog.=) $1 "
		"AND c.renew_at OPERATOR(pg_catalog.<=) $2 "
		"AND (c.state OPERATOR(pg_catalog.=) 'retiring' "
		"OR (s.user_id IS NOT NULL AND stop.is_due IS NULL)) "
		"ORDER BY c.renew_at LIMIT $3 FOR NO KEY UPDATE OF c SKIP LOCKED",
		3, {ARG_SOURCE, TIMESTAMPTZOID, INT8OID}, BY_KEY
	},
	[PLAN_CHANNEL_ACTIVE] = {
		"SELECT FROM syncstate.sync_channel AS s WHERE " KEY_MATCHES
		" AND s.state OPERATOR(pg_catalog.=) 'active'",
		KEY_ARGS, BY_KEY
	},
	[PLAN_CHANNEL] = {
		"SELECT " ROW_OF(c, sync_channel) " FROM syncstate.sync_channel AS c "
		"WHERE c.channel_id OPERATOR(pg_catalog.=) $1",
		1, {TEXTOID}, READ_ONLY
	},
	[PLAN_CHANNEL_LOCK] = {
		"SELECT " ROW_OF(c, sync_channel) " FROM syncstate.sync_channel AS c "
		"WHERE c.channel_id OPERATOR(pg_catalog.=) $1 FOR UPDATE",
		1, {TEXTOID}, BY_KEY
	},
	[PLAN_CHANNEL_LOCK_LEASED] = {
		"SELECT " ROW_OF(s, sync_channel) " FROM syncstate.sync_channel AS s WHERE " KEY_MATCHES
		" AND s.lease OPERATOR(pg_catalog.=) $5 AND s.lease_expires_at IS NOT NULL "
		"FOR UPDATE",
		NUM_KEY_COLUMNS + 1, {KEY_TYPES, INT8OID}, BY_KEY
	},
	[PLAN_CHANNEL_MAKE] = {
		"INSERT INTO syncstate.sync_channel AS c ("
		SYNC_KEY_COLUMNS(KEY_NAME) "id" SYNC_CHANNEL_COLUMNS(CHANNEL_NAME) ") "
		"SELECT " SYNC_KEY_COLUMNS(KEY_OF_ROW) "pg_catalog.gen_random_uuid()"
		SYNC_CHANNEL_COLUMNS(CHANNEL_OF_ROW) " RETURNING " ROW_OF(c, sync_channel),
		1, {ARG_CHANNEL}, BY_KEY
	},
	[PLAN_CHANNEL_WRITE] = {
		"UPDATE syncstate.sync_channel AS c SET id = c.id"
		SYNC_CHANNEL_COLUMNS(CHANNEL_ASSIGNED) " WHERE " CHANNEL_MATCHES
		" RETURNING " ROW_OF(c, sync_channel),
		1, {ARG_CHANNEL}, BY_KEY
	},
	[PLAN_CHANNEL_DROP] = {
		"DELETE FROM syncstate.sync_channel AS c WHERE " CHANNEL_MATCHES
		" RETURNING " ROW_OF(c, sync_channel),
		1, {ARG_CHANNEL}, BY_KEY
	},

	[PLAN_CHANNEL_TRY] = {
		"SELECT " ROW_OF(c, sync_channel) " FROM syncstate.sync_channel AS c "
		"WHERE " CHANNEL_MATCHES " FOR NO KEY UPDATE SKIP LOCKED",
		1, {ARG_CHANNEL}, BY_KEY
	},
};

/*
 * The planner's settings for our statements.  Plans are generic and go by key or
 * ctid whatever the statistics say: a plan made while the table was empty would
 * otherwise scan it from end to end for each report, until the next ANALYZE.  No
 * JIT, since disable_cost would trigger it.
 */
static const struct
{
	bool	   *setting;
	bool		value;
}			planner_settings[] = {
	{&enable_seqscan, false},
	{&enable_hashjoin, false},
	{&enable_mergejoin, false},
	{&enable_nestloop, true},
	{&enable_indexscan, true},
	{&enable_tidscan, true},
	{&jit_enabled, false},
};

/* A kept plan, and the enum that its parameters are of. */
typedef struct KeptPlan
{
	SPIPlanPtr	plan;
	Oid			source_type;
} KeptPlan;

static KeptPlan plans[NUM_PLANS];

/* How many of our statements are running, one within the other. */
static int	running = 0;

/* What our own UPDATE is writing, and at which depth of triggers. */
typedef struct Writing
{
	ItemPointerData tid;		/* invalid: nothing */
	int			depth;
} Writing;

static Writing writing;

/*
 * Fetches or prepares a kept plan.
 *
 * A plan whose types are gone, with the extension that had them, is made anew.
 * The old one is freed only when none of our statements is running, since it may
 * be the one.
 */
static SPIPlanPtr
fetch_plan(PlanId id)
{
	const CatalogIds *ids = syncstate_ids();
	const PlanText *text = &plan_texts[id];
	KeptPlan   *kept = &plans[id];
	Oid			args[MAX_PLAN_ARGS];
	SPIPlanPtr	prepared;

	if (kept->plan != NULL && kept->source_type == ids->source_type)
		return kept->plan;
	if (kept->plan != NULL && running == 0)
		SPI_freeplan(kept->plan);
	kept->plan = NULL;

	for (int i = 0; i < text->nargs; i++)
		args[i] = text->args[i] == ARG_SOURCE ? ids->source_type :
			text->args[i] == ARG_STATE ? ids->state_rowtype :
			text->args[i] == ARG_POLICY ? ids->policy_rowtype :
			text->args[i] == ARG_SOURCES ? get_array_type(ids->source_type) :
			text->args[i] == ARG_EVENTS ? get_array_type(ids->event_rowtype) :
			text->args[i] == ARG_RUNS ? get_array_type(ids->run_rowtype) :
			text->args[i] == ARG_CHANNEL ? ids->channel_rowtype :
			text->args[i];
	kept->source_type = ids->source_type;
	prepared = SPI_prepare_cursor(text->sql, text->nargs, args,
								  CURSOR_OPT_GENERIC_PLAN);
	if (prepared == NULL || SPI_keepplan(prepared) != 0)
		elog(ERROR, "could not prepare statement %d: %s", id,
			 SPI_result_code_string(SPI_result));
	kept->plan = prepared;
	return prepared;
}

/* Gives the planner other settings, in exchange for those that it has. */
static pg_noinline void
swap_settings(bool *settings, int *cache_mode)
{
	int			mode_was = plan_cache_mode;

	for (size_t i = 0; i < lengthof(planner_settings); i++)
	{
		bool		was = *planner_settings[i].setting;

		*planner_settings[i].setting = settings[i];
		settings[i] = was;
	}
	plan_cache_mode = *cache_mode;
	*cache_mode = mode_was;
}

/*
 * Opens a portal for a statement, which plans it if it has no plan yet.  Our
 * planner's settings are in force for no longer than that: what the statement
 * runs of a site's must not see them.
 */
static Portal
open_statement(SPIPlanPtr plan, const PlanText *text, Datum *values,
			   const char *nulls)
{
	bool		settings[lengthof(planner_settings)];
	int			cache_mode = PLAN_CACHE_MODE_FORCE_GENERIC_PLAN;
	Portal volatile portal = NULL;

	for (size_t i = 0; i < lengthof(planner_settings); i++)
		settings[i] = planner_settings[i].value ||
			(text->kind == READS_ALL &&
			 (planner_settings[i].setting == &enable_seqscan ||
			  planner_settings[i].setting == &enable_hashjoin));
	swap_settings(settings, &cache_mode);
	PG_TRY();
	{
		portal = SPI_cursor_open(NULL, plan, values, nulls,
								 text->kind == READ_ONLY);
	}
	PG_FINALLY();
	{
		swap_settings(settings, &cache_mode);
	}
	PG_END_TRY();
	return portal;
}

/* Runs a kept plan; returns the number of rows, which are in SPI_tuptable. */
static uint64
run(PlanId id, Datum *values, const char *nulls)
{
	SPIPlanPtr volatile plan = fetch_plan(id);

	running++;
	PG_TRY();
	{
		Portal		portal = open_statement(plan, &plan_texts[id], values, nulls);

		SPI_cursor_fetch(portal, true, FETCH_ALL);
		SPI_cursor_close(portal);
		if (plan_texts[id].kind != READ_ONLY)
			CommandCounterIncrement();	/* what comes next sees it */
	}
	PG_FINALLY();
	{
		running--;
	}
	PG_END_TRY();
	return SPI_processed;
}

/*
 * The same as the owner of a table of ours, as foreign keys do it: see
 * ri_triggers.c.  An error gives the caller's identity back, with the end of its
 * transaction.
 */
static uint64
run_as_owner(PlanId id, Datum *values, const char *nulls, Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;
	Oid			save_userid;
	int			save_sec_context;
	uint64		processed;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);

	GetUserIdAndSecContext(&save_userid, &save_sec_context);
	SetUserIdAndSecContext(owner, save_sec_context |
						   SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
	processed = run(id, values, nulls);
	SetUserIdAndSecContext(save_userid, save_sec_context);
	return processed;
}

static void
key_args(const SyncKey *key, Datum *values)
{
	values[0] = UUIDPGetDatum(&key->user_id);
	values[1] = PointerGetDatum(key->account);
	values[2] = ObjectIdGetDatum(key->source);
	values[3] = PointerGetDatum(key->resource);
}

/*
 * Reads the row that a statement returned, all columns and then its ctid.  Keeps
 * a copy of the tuple alone: the result has a block of memory of its own, and a
 * batch reads many.
 */
static void
read_row(SyncState *row)
{
	Datum		values[Natts_sync_state + 1];
	bool		nulls[Natts_sync_state + 1];
	HeapTuple	tuple = heap_copytuple(SPI_tuptable->vals[0]);

	Assert(SPI_tuptable->tupdesc->natts == Natts_sync_state + 1);
	heap_deform_tuple(tuple, SPI_tuptable->tupdesc, values, nulls);
	SPI_freetuptable(SPI_tuptable);
	syncstate_state_from_datums(values, nulls, row);
	row->ctid = *(ItemPointer) DatumGetPointer(values[Natts_sync_state]);
}

/* A composite value of the values of our columns; columns after them are null. */
static Datum
composite(Oid rowtype, const Datum *ours, const bool *ours_null, int ncolumns)
{
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(rowtype, -1);
	Datum	   *values = palloc0(tupdesc->natts * sizeof(Datum));
	bool	   *nulls = palloc(tupdesc->natts * sizeof(bool));
	Datum		result;

	memset(nulls, true, tupdesc->natts * sizeof(bool));
	memcpy(values, ours, ncolumns * sizeof(Datum));
	memcpy(nulls, ours_null, ncolumns * sizeof(bool));
	result = heap_copy_tuple_as_datum(heap_form_tuple(tupdesc, values, nulls),
									  tupdesc);
	ReleaseTupleDesc(tupdesc);
	return result;
}

static Datum
state_datum(const SyncState *row)
{
	Datum		values[Natts_sync_state];
	bool		nulls[Natts_sync_state];

	syncstate_state_to_datums(row, values, nulls);
	return composite(syncstate_ids()->state_rowtype, values, nulls,
					 Natts_sync_state);
}

static Datum
channel_datum(const SyncChannel *channel)
{
	Datum		values[Natts_sync_channel];
	bool		nulls[Natts_sync_channel];

	syncstate_channel_to_datums(channel, values, nulls);
	return composite(syncstate_ids()->channel_rowtype, values, nulls,
					 Natts_sync_channel);
}

/* Reads the row of a key by a plan that has all columns. */
static bool
read_by_key(PlanId id, const SyncKey *key, SyncState *row)
{
	Datum		values[NUM_KEY_COLUMNS];

	key_args(key, values);
	if (run(id, values, NULL) == 0)
	{
		SPI_freetuptable(SPI_tuptable);
		return false;
	}
	read_row(row);
	return true;
}

/* Reads the row of a key; false if there is none to be seen. */
bool
syncstate_store_read(const SyncKey *key, SyncState *row)
{
	return read_by_key(PLAN_READ, key, row);
}

/*
 * Locks and reads the row of a key, waiting for others that have it locked;
 * false if there is none to be seen.
 */
bool
syncstate_store_lock(const SyncKey *key, SyncState *row)
{
	return read_by_key(PLAN_LOCK, key, row);
}

/*
 * Locks and reads the row with this version, without waiting.  False if it is
 * locked or was changed, or if row security hides it: then it is not locked.
 */
bool
syncstate_store_lock_version(ItemPointer tid, SyncState *row)
{
	Datum		values[1] = {PointerGetDatum(tid)};

	if (run(PLAN_LOCK_VERSION, values, NULL) == 0)
	{
		SPI_freetuptable(SPI_tuptable);
		return false;
	}
	read_row(row);
	return true;
}

/* Whether row security shows the caller a version. */
bool
syncstate_store_sees(ItemPointer tid)
{
	Datum		values[1] = {PointerGetDatum(tid)};
	bool		sees = run(PLAN_SEES, values, NULL) == 1;

	SPI_freetuptable(SPI_tuptable);
	return sees;
}

/* Makes the row of a key, as the defaults have it; false if it is there. */
bool
syncstate_store_make(const SyncKey *key, TimestampTz limited_until)
{
	Datum		values[NUM_KEY_COLUMNS + 1];
	bool		made;

	key_args(key, values);
	values[NUM_KEY_COLUMNS] = TimestampTzGetDatum(limited_until);
	made = run(PLAN_MAKE, values, limited_until == NO_TIME ? "    n" : NULL) > 0;
	SPI_freetuptable(SPI_tuptable);
	return made;
}

/* How many triggers are running, one within the other. */
static int
trigger_depth(void)
{
	LOCAL_FCINFO(fcinfo, 0);

	InitFunctionCallInfoData(*fcinfo, NULL, 0, InvalidOid, NULL, NULL);
	return DatumGetInt32(pg_trigger_depth(fcinfo));
}

/* The row of a table in a result whose first column it is. */
static HeapTuple
returned_row(HeapTuple result)
{
	HeapTupleData tuple = {.t_tableOid = InvalidOid};
	bool		isnull;

	tuple.t_data = DatumGetHeapTupleHeader(SPI_getbinval(result,
														 SPI_tuptable->tupdesc,
														 1, &isnull));
	tuple.t_len = HeapTupleHeaderGetDatumLength(tuple.t_data);
	ItemPointerSetInvalid(&tuple.t_self);
	return SPI_copytuple(&tuple);
}

/*
 * Writes a row that was locked in this transaction.  Returns the row as it is
 * now, in the caller's outer context; NULL if row security or a trigger kept it
 * from being written.
 */
HeapTuple
syncstate_store_write(const SyncState *row)
{
	Datum		values[2] = {PointerGetDatum(&row->ctid), state_datum(row)};
	Writing		save_writing = writing;
	volatile uint64 written = 0;
	HeapTuple	result;

	PG_TRY();
	{
		writing.tid = row->ctid;
		writing.depth = trigger_depth();
		written = run(PLAN_WRITE, values, NULL);
	}
	PG_FINALLY();
	{
		writing = save_writing;
	}
	PG_END_TRY();
	if (written != 1)
		return NULL;

	result = returned_row(SPI_tuptable->vals[0]);
	SPI_freetuptable(SPI_tuptable);
	return result;
}

/*
 * Whether the trigger that asks was fired by our own UPDATE of this version.
 * Only that write is legal as it is: a trigger of the site's may write other
 * rows, or this one, at the same time.
 */
bool
syncstate_store_is_writing(ItemPointer tid)
{
	return ItemPointerIsValid(&writing.tid) &&
		ItemPointerEquals(&writing.tid, tid) &&
		trigger_depth() == writing.depth + 1;
}

/*
 * Deletes the row of a key; false if the caller sees no such row.  Whoever may
 * delete rows need not be able to read all of them.
 */
bool
syncstate_store_delete(const SyncKey *key)
{
	Datum		values[NUM_KEY_COLUMNS];
	bool		deleted;

	key_args(key, values);
	deleted = run(PLAN_DELETE, values, NULL) > 0;
	SPI_freetuptable(SPI_tuptable);
	return deleted;
}

/*
 * Deletes the row of a key; returns it as it was, in the caller's outer context,
 * or NULL if the caller sees no such row.
 */
HeapTuple
syncstate_store_take(const SyncKey *key)
{
	Datum		values[NUM_KEY_COLUMNS];
	HeapTuple	deleted = NULL;

	key_args(key, values);
	if (run(PLAN_TAKE, values, NULL) > 0)
		deleted = returned_row(SPI_tuptable->vals[0]);
	SPI_freetuptable(SPI_tuptable);
	return deleted;
}

/*
 * Locks the row of row->key for a request, and reads the columns that the
 * statement names, in their order; false if there is none to be seen.
 */
bool
syncstate_store_lock_request(SyncState *row)
{
	static const int columns[] = {
		Anum_sync_state_status, Anum_sync_state_due_at,
		Anum_sync_state_requested_at, Anum_sync_state_parked_reason,
		Anum_sync_state_sync_interval, Anum_sync_state_last_sync_at,
		Anum_sync_state_failures, Anum_sync_state_updated_at,
		Anum_sync_state_limited_until,
	};
	Datum		values[Natts_sync_state];
	bool		nulls[Natts_sync_state];
	bool		found;

	key_args(&row->key, values);
	found = run(PLAN_REQUEST_LOCK, values, NULL) > 0;
	if (found)
	{
		HeapTuple	tuple = heap_copytuple(SPI_tuptable->vals[0]);

		syncstate_state_to_datums(row, values, nulls);
		for (size_t i = 0; i < lengthof(columns); i++)
			values[columns[i] - 1] = SPI_getbinval(tuple, SPI_tuptable->tupdesc,
												   i + 1,
												   &nulls[columns[i] - 1]);
		syncstate_state_from_datums(values, nulls, row);
	}
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/*
 * Writes a request into the row of a key.
 *
 * A direct write, which passes the trigger: the caller may be a user, who may
 * write no column but requested_at, and the trigger sets updated_at.
 */
bool
syncstate_store_request(const SyncKey *key, TimestampTz now)
{
	Datum		values[NUM_KEY_COLUMNS + 1];
	bool		requested;

	key_args(key, values);
	values[NUM_KEY_COLUMNS] = TimestampTzGetDatum(now);
	requested = run(PLAN_REQUEST, values, NULL) > 0;
	SPI_freetuptable(SPI_tuptable);
	return requested;
}

/* Reads what a locked row would be with the changes of a JSON object. */
void
syncstate_store_change(const SyncState *row, Datum changes, SyncState *changed)
{
	Datum		values[2];

	values[0] = PointerGetDatum(&row->ctid);
	values[1] = changes;
	if (run(PLAN_CHANGE, values, NULL) != 1)
		elog(ERROR, "locked sync state is gone");
	read_row(changed);
	changed->tuple = row->tuple;
}

/*
 * The keys of rows of a source that are parked for one of these reasons: at most
 * so many, in the order of the key.
 */
SyncKey *
syncstate_store_parked(Oid source, ArrayType *reasons, int max_rows, int *nkeys)
{
	Datum		values[3];
	SyncKey    *keys;

	values[0] = ObjectIdGetDatum(source);
	values[1] = PointerGetDatum(reasons);
	values[2] = Int64GetDatum(max_rows);
	*nkeys = (int) run(PLAN_PARKED, values, NULL);
	keys = palloc(Max(*nkeys, 1) * sizeof(SyncKey));
	for (int i = 0; i < *nkeys; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	tupdesc = SPI_tuptable->tupdesc;
		bool		isnull;

		keys[i].user_id = *DatumGetUUIDP(SPI_getbinval(tuple, tupdesc, 1, &isnull));
		keys[i].source = source;
		keys[i].account = DatumGetTextPP(SPI_getbinval(tuple, tupdesc, 2, &isnull));
		keys[i].resource = DatumGetTextPP(SPI_getbinval(tuple, tupdesc, 3, &isnull));
	}
	return keys;
}

/* An array of sources. */
static Datum
source_array(const Oid *sources, int nsources)
{
	Datum	   *elements = palloc(Max(nsources, 1) * sizeof(Datum));

	for (int i = 0; i < nsources; i++)
		elements[i] = ObjectIdGetDatum(sources[i]);
	return PointerGetDatum(construct_array(elements, nsources,
										   syncstate_ids()->source_type,
										   sizeof(Oid), true, TYPALIGN_INT));
}

static void
account_args(const SyncAccount *account, Datum *values)
{
	values[0] = UUIDPGetDatum(&account->user_id);
	values[1] = PointerGetDatum(account->account);
	values[2] = source_array(account->sources, account->nsources);
}

/* The longest limit of an account; NO_TIME: none. */
TimestampTz
syncstate_store_limit(const SyncAccount *account)
{
	Datum		values[3];
	Datum		limited_until;
	bool		isnull;

	account_args(account, values);
	run(PLAN_LIMIT, values, NULL);
	limited_until = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
								  1, &isnull);
	return isnull ? NO_TIME : DatumGetTimestampTz(limited_until);
}

/* The keys of the rows of an account that are to be seen, in their order. */
SyncKey *
syncstate_store_account(const SyncAccount *account, int *nkeys)
{
	Datum		values[3];
	SyncKey    *keys;

	account_args(account, values);
	*nkeys = (int) run(PLAN_ACCOUNT, values, NULL);
	keys = palloc(Max(*nkeys, 1) * sizeof(SyncKey));
	for (int i = 0; i < *nkeys; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	tupdesc = SPI_tuptable->tupdesc;
		bool		isnull;

		keys[i].user_id = account->user_id;
		keys[i].account = account->account;
		keys[i].source = DatumGetObjectId(SPI_getbinval(tuple, tupdesc, 1, &isnull));
		keys[i].resource = DatumGetTextPP(SPI_getbinval(tuple, tupdesc, 2, &isnull));
	}
	return keys;
}

/*
 * Makes and locks the overrides of a source; returns what they would be with
 * the changes of a JSON object.
 */
Datum
syncstate_store_policy_changes(Oid source, Datum changes)
{
	Datum		values[2];
	bool		isnull;

	values[0] = ObjectIdGetDatum(source);
	values[1] = changes;

	/* another session may delete the row in between, having tidied it */
	for (int try = 0; try < MAX_TRIES; try++)
	{
		run(PLAN_POLICY_MAKE, values, NULL);
		if (run(PLAN_POLICY_CHANGES, values, NULL) == 1)
			break;
	}
	if (SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for table %s", "sync_policy")));
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						 &isnull);
}

/*
 * Pauses a source until a time; NO_TIME ends the pause.  "extend" leaves a
 * longer pause as it is.
 */
void
syncstate_store_pause(Oid source, TimestampTz until, bool extend)
{
	Datum		values[3];

	values[0] = ObjectIdGetDatum(source);
	values[1] = TimestampTzGetDatum(until);
	values[2] = BoolGetDatum(extend);
	run(PLAN_POLICY_PAUSE, values, until == NO_TIME ? " n " : NULL);
	if (until == NO_TIME)
		run(PLAN_POLICY_TIDY, values, NULL);
}

/* Plans a full sync of all rows of a source; a spread of NULL is the built-in one. */
void
syncstate_store_resync(Oid source, TimestampTz from, Interval *spread)
{
	Datum		values[3];

	values[0] = ObjectIdGetDatum(source);
	values[1] = TimestampTzGetDatum(from);
	values[2] = IntervalPGetDatum(spread);
	run(PLAN_POLICY_RESYNC, values, spread == NULL ? "  n" : NULL);
}

/* Writes the overrides of a source; none left, no row. */
void
syncstate_store_policy_write(Oid source, Datum policy)
{
	Datum		values[2];

	values[0] = ObjectIdGetDatum(source);
	values[1] = policy;
	run(PLAN_POLICY_WRITE, values, NULL);
	run(PLAN_POLICY_TIDY, values, NULL);
}

/* Reads what was learned about the budget of a source; false if nothing was. */
bool
syncstate_store_budget(Oid source, SyncBudget *budget)
{
	Datum		args[1] = {ObjectIdGetDatum(source)};
	Datum		values[Natts_sync_budget];
	bool		nulls[Natts_sync_budget];

	budget->source = source;
	if (run(PLAN_BUDGET, args, NULL) == 0)
		return false;
	heap_deform_tuple(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, values,
					  nulls);
#define READ(name, c_type, sql_type) \
	budget->name = DatumGet##sql_type(values[Anum_sync_budget_##name - 1]);
	SYNC_BUDGET_COLUMNS(READ)
#undef READ
	return true;
}

/* Writes the same. */
void
syncstate_store_budget_write(const SyncBudget *budget)
{
	Datum		values[Natts_sync_budget] = {ObjectIdGetDatum(budget->source)};

#define WRITE(name, c_type, sql_type) \
	values[Anum_sync_budget_##name - 1] = sql_type##GetDatum(budget->name);
	SYNC_BUDGET_COLUMNS(WRITE)
#undef WRITE
	run(PLAN_BUDGET_WRITE, values, NULL);
}

/* Forgets what was learned about the budget of a source. */
void
syncstate_store_budget_drop(Oid source)
{
	Datum		args[1];

	args[0] = ObjectIdGetDatum(source);
	run(PLAN_BUDGET_DROP, args, NULL);
}

/*
 * Reads the whole of a source once.  Leaves in SPI_tuptable a row per bucket:
 * its kind (0 by budget, 1 with their own interval or with push, 2 parked), the
 * number of rows, the mean square root of their rates, their syncs per second by
 * their own intervals and by push, the sums of changes_seen, seconds_watched and syncs_started, how
 * many fell due before "late", and how many were made after "since".
 */
uint64
syncstate_store_rates(Oid source, double mean_rate, TimestampTz since,
					  TimestampTz late, TimestampTz push_from,
					  double push_seconds)
{
	Datum		args[6];

	args[0] = ObjectIdGetDatum(source);
	args[1] = Float8GetDatum(mean_rate);
	args[2] = TimestampTzGetDatum(since);
	args[3] = TimestampTzGetDatum(late);
	args[4] = TimestampTzGetDatum(push_from);
	args[5] = Float8GetDatum(push_seconds);
	return run(PLAN_RATES, args, NULL);
}

/* An array of composite values. */
static Datum
row_array(Datum *rows, int nrows, Oid rowtype)
{
	return PointerGetDatum(construct_array(rows, nrows, rowtype, -1, false,
										   TYPALIGN_DOUBLE));
}

/* Writes rows of sync_event. */
void
syncstate_store_events(Datum *events, int nevents)
{
	const CatalogIds *ids = syncstate_ids();
	Datum		values[1] = {row_array(events, nevents, ids->event_rowtype)};

	run_as_owner(PLAN_EVENTS, values, NULL, ids->event_rel);
	SPI_freetuptable(SPI_tuptable);
}

/* Writes rows of sync_run. */
void
syncstate_store_runs(Datum *runs, int nruns)
{
	const CatalogIds *ids = syncstate_ids();
	Datum		values[1] = {row_array(runs, nruns, ids->run_rowtype)};

	run_as_owner(PLAN_RUNS, values, NULL, ids->run_rel);
	SPI_freetuptable(SPI_tuptable);
}

/*
 * The oldest rows from a time on: of sync_event, or of sync_run where there is a
 * source.
 */
OldRow *
syncstate_store_oldest(Oid source, TimestampTz from, int max_rows, int *nrows)
{
	bool		of_runs = OidIsValid(source);
	Datum		values[3];
	OldRow	   *rows;

	values[0] = TimestampTzGetDatum(from);
	values[1] = Int64GetDatum(max_rows);
	values[2] = ObjectIdGetDatum(source);
	*nrows = (int) run_as_owner(of_runs ? PLAN_RUNS_OLDEST : PLAN_EVENTS_OLDEST,
								values, NULL,
								of_runs ? syncstate_ids()->run_rel : syncstate_ids()->event_rel);
	rows = palloc(Max(*nrows, 1) * sizeof(OldRow));
	for (int i = 0; i < *nrows; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	tupdesc = SPI_tuptable->tupdesc;
		bool		isnull;

		rows[i].tid = *(ItemPointer) DatumGetPointer(SPI_getbinval(tuple, tupdesc, 1, &isnull));
		rows[i].at = DatumGetTimestampTz(SPI_getbinval(tuple, tupdesc, 2, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
	return rows;
}

/* Deletes such rows, in the order of time, but for those that somebody has locked. */
void
syncstate_store_trim(Oid source, const OldRow *rows, int nrows)
{
	bool		of_runs = OidIsValid(source);
	Datum	   *tids = palloc(nrows * sizeof(Datum));
	Datum		values[3];

	for (int i = 0; i < nrows; i++)
		tids[i] = PointerGetDatum(&rows[i].tid);
	values[0] = PointerGetDatum(construct_array(tids, nrows, TIDOID,
												sizeof(ItemPointerData), false,
												TYPALIGN_SHORT));
	values[1] = TimestampTzGetDatum(rows[nrows - 1].at);
	values[2] = ObjectIdGetDatum(source);
	run_as_owner(of_runs ? PLAN_RUNS_TRIM : PLAN_EVENTS_TRIM, values, NULL,
				 of_runs ? syncstate_ids()->run_rel : syncstate_ids()->event_rel);
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Deletes the oldest rows of sync_event that nobody else is deleting; returns
 * them in the order of time.
 */
HeapTuple *
syncstate_store_take_events(int max_rows, int *nevents)
{
	Datum		values[1] = {Int64GetDatum(max_rows)};
	HeapTuple  *events;

	*nevents = (int) run(PLAN_EVENTS_TAKE, values, NULL);
	events = palloc(Max(*nevents, 1) * sizeof(HeapTuple));
	for (int i = 0; i < *nevents; i++)
		events[i] = returned_row(SPI_tuptable->vals[i]);
	SPI_freetuptable(SPI_tuptable);
	return events;
}

/* Whether a source has channels that the caller sees. */
bool
syncstate_store_has_channels(Oid source)
{
	Datum		values[1] = {ObjectIdGetDatum(source)};
	bool		has_channels = run(PLAN_CHANNELS_ANY, values, NULL) > 0;

	SPI_freetuptable(SPI_tuptable);
	return has_channels;
}

/*
 * Makes the channels of a source match its rows, at most so many of them, as the
 * owner of the tables: who sees only some of the rows would take the others for
 * gone.  Returns how many did not match.
 */
int64
syncstate_store_match_channels(const SyncPolicy *policy, int max_rows,
							   TimestampTz now)
{
	int64		longest = Max(ASK_AGAIN_AFTER, MAX_LEASE_TIME + policy->retry_cap);
	Datum		values[6];
	bool		isnull;
	int64		nwrong;

	values[0] = ObjectIdGetDatum(policy->source);
	values[1] = BoolGetDatum(policy->push_renew_before != 0);
	values[2] = Int64GetDatum(max_rows);
	values[3] = TimestampTzGetDatum(now);
	values[4] = TimestampTzGetDatum(now + longest);
	values[5] = Int64GetDatum(syncstate_first_lease());
	run_as_owner(PLAN_CHANNELS_MATCH, values, NULL, syncstate_ids()->channel_rel);
	nwrong = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return nwrong;
}

/* Reads the channel that is the first column of a result. */
static void
read_channel(HeapTuple result, SyncChannel *channel)
{
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(syncstate_ids()->channel_rowtype, -1);
	HeapTupleData tuple = {.t_tableOid = InvalidOid};
	bool		isnull;

	tuple.t_data = DatumGetHeapTupleHeaderCopy(SPI_getbinval(result,
															 SPI_tuptable->tupdesc,
															 1, &isnull));
	tuple.t_len = HeapTupleHeaderGetDatumLength(tuple.t_data);
	ItemPointerSetInvalid(&tuple.t_self);
	syncstate_channel_from_tuple(&tuple, tupdesc, channel);
	ReleaseTupleDesc(tupdesc);
}

/* Locks channels of a source for which something is to be done, oldest first. */
DueChannel *
syncstate_store_due_channels(Oid source, int max_rows, TimestampTz now,
							 int *nchannels)
{
	Datum		values[3];
	DueChannel *due;

	values[0] = ObjectIdGetDatum(source);
	values[1] = TimestampTzGetDatum(now);
	values[2] = Int64GetDatum(max_rows);
	*nchannels = (int) run(PLAN_CHANNELS_DUE, values, NULL);
	due = palloc(Max(*nchannels, 1) * sizeof(DueChannel));
	for (int i = 0; i < *nchannels; i++)
	{
		HeapTuple	result = SPI_tuptable->vals[i];
		TupleDesc	tupdesc = SPI_tuptable->tupdesc;
		bool		isnull;
		Datum		limited_until;

		read_channel(result, &due[i].channel);
		due[i].row_is_parked = DatumGetBool(SPI_getbinval(result, tupdesc, 2,
														  &isnull));
		limited_until = SPI_getbinval(result, tupdesc, 3, &isnull);
		due[i].limited_until = isnull ? NO_TIME :
			DatumGetTimestampTz(limited_until);
	}
	SPI_freetuptable(SPI_tuptable);
	return due;
}

/* Reads the channel that a statement finds; false if there is none to be seen. */
static bool
find_channel(PlanId id, Datum *values, SyncChannel *channel)
{
	bool		found = run(id, values, NULL) > 0;

	if (found)
		read_channel(SPI_tuptable->vals[0], channel);
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/* Whether a row has an open channel that is not to be stopped. */
bool
syncstate_store_has_active_channel(const SyncKey *key)
{
	Datum		values[NUM_KEY_COLUMNS];
	bool		has_channel;

	key_args(key, values);
	has_channel = run(PLAN_CHANNEL_ACTIVE, values, NULL) > 0;
	SPI_freetuptable(SPI_tuptable);
	return has_channel;
}

/* Reads the channel with an id; neither writes nor locks. */
bool
syncstate_store_channel(const text *channel_id, SyncChannel *channel)
{
	Datum		values[1] = {PointerGetDatum(channel_id)};

	return find_channel(PLAN_CHANNEL, values, channel);
}

/* Locks and reads the channel with an id. */
bool
syncstate_store_lock_channel(const text *channel_id, SyncChannel *channel)
{
	Datum		values[1] = {PointerGetDatum(channel_id)};

	return find_channel(PLAN_CHANNEL_LOCK, values, channel);
}

/* Locks and reads the channel of a row that somebody has under this lease. */
bool
syncstate_store_lock_leased(const SyncKey *key, int64 lease, SyncChannel *channel)
{
	Datum		values[NUM_KEY_COLUMNS + 1];

	key_args(key, values);
	values[NUM_KEY_COLUMNS] = Int64GetDatum(lease);
	return find_channel(PLAN_CHANNEL_LOCK_LEASED, values, channel);
}

/*
 * Runs a statement that writes a channel; returns the channel as it is now, or as
 * it was, in the caller's outer context.
 */
static HeapTuple
write_channel(PlanId id, const SyncChannel *channel)
{
	Datum		values[1] = {channel_datum(channel)};
	HeapTuple	written;

	if (run(id, values, NULL) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for table %s", "sync_channel")));
	written = returned_row(SPI_tuptable->vals[0]);
	SPI_freetuptable(SPI_tuptable);
	return written;
}

/* Makes a channel, with an id of its own. */
HeapTuple
syncstate_store_make_channel(const SyncChannel *channel)
{
	return write_channel(PLAN_CHANNEL_MAKE, channel);
}

/* Writes a channel that was locked in this transaction. */
HeapTuple
syncstate_store_write_channel(const SyncChannel *channel)
{
	return write_channel(PLAN_CHANNEL_WRITE, channel);
}

/* Deletes a channel that was locked in this transaction. */
HeapTuple
syncstate_store_drop_channel(const SyncChannel *channel)
{
	return write_channel(PLAN_CHANNEL_DROP, channel);
}

/*
 * Locks a channel that was read, without waiting, and reads it again; false if
 * somebody else has it locked, or it is gone.
 */
bool
syncstate_store_try_channel(SyncChannel *channel)
{
	Datum		values[1] = {channel_datum(channel)};

	return find_channel(PLAN_CHANNEL_TRY, values, channel);
}
