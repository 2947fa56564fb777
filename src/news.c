/*
 * news.c: what happened: events and runs, kept until they are taken or too old
 *
 * A transition says in its row what there is to tell; whoever writes the row
 * adds that to the list of its call, and all of the list is written at once, in
 * the same transaction.  It is written as the owner of the tables: whoever
 * causes an event, a user for one, need not be able to write events.
 *
 * What is too old is deleted by those who add to the tables, a bounded number of
 * rows each time, so that nobody has to run a job.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "commands/async.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

#include "args.h"
#include "news.h"
#include "policy.h"
#include "store.h"
#include "syncstate.h"
#include "transition.h"

#define KEEP_EVENTS_FOR		(30 * USECS_PER_DAY)

/* Rows that a call deletes at most; or twice as many as it wrote, if that is more. */
#define MAX_TRIMMED			100

/* Rows may be this part of their time too old, so that many are deleted at once. */
#define TRIM_SLACK			100

/*
 * From time to time all rows are looked at again: what was committed late, or
 * brought back by a rollback, lies before the place reached so far.
 */
#define TRIM_SWEEPS			10

/* Where the oldest rows are, of all events or of the runs of a source: a hint. */
typedef struct Trim
{
	Oid			rel;
	Oid			source;			/* invalid: of all */
	TimestampTz oldest;			/* NO_TIME: not known */
	TimestampTz swept_at;
} Trim;

static const char *const event_words[NUM_EVENTS] = {
	[EVENT_PARKED] = "parked",
	[EVENT_FAILING] = "failing",
	[EVENT_RECOVERED] = "recovered",
	[EVENT_FIRST_SYNC] = "first_sync",
	[EVENT_CURSOR_LOST] = "cursor_lost",
	[EVENT_GONE] = "gone",
	[EVENT_SWEEP_WITHHELD] = "sweep_withheld",
	[EVENT_SOURCE_LIMITED] = "source_limited",
	[EVENT_SOURCE_RESUMED] = "source_resumed",
};

static Trim *trims = NULL;
static int	ntrims = 0;

PG_FUNCTION_INFO_V1(syncstate_take_sync_events);

/* Adds a row to a list, from the values of our columns; columns after them are null. */
static void
add(NewsList *list, NewsRows *rows, Oid rowtype, const Datum *ours,
	const bool *ours_null, int ncolumns)
{
	MemoryContext save = MemoryContextSwitchTo(list->context);
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(rowtype, -1);
	Datum	   *values = palloc0(tupdesc->natts * sizeof(Datum));
	bool	   *nulls = palloc(tupdesc->natts * sizeof(bool));

	memset(nulls, true, tupdesc->natts * sizeof(bool));
	memcpy(values, ours, ncolumns * sizeof(Datum));
	memcpy(nulls, ours_null, ncolumns * sizeof(bool));

	if (rows->nrows == rows->room)
	{
		rows->room = Max(2 * rows->room, 16);
		rows->rows = rows->rows == NULL ?
			palloc(rows->room * sizeof(Datum)) :
			repalloc(rows->rows, rows->room * sizeof(Datum));
	}
	rows->rows[rows->nrows++] =
		HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
	ReleaseTupleDesc(tupdesc);
	MemoryContextSwitchTo(save);
}

#define SET(column, value) \
	do { \
		values[Anum_##column - 1] = (value); \
		nulls[Anum_##column - 1] = false; \
	} while (0)
#define SET_UNLESS(is_null, column, value) \
	if (!(is_null)) \
		SET(column, value)

/* Adds an event. */
void
syncstate_news_event(NewsList *list, const EventRow *event)
{
	const SyncKey *key = event->key;
	Datum		values[Natts_sync_event] = {0};
	bool		nulls[Natts_sync_event];

	memset(nulls, true, sizeof(nulls));
	SET(sync_event_at, TimestampTzGetDatum(event->at));
	SET(sync_event_event, CStringGetTextDatum(event_words[event->event]));
	if (key == NULL)
		SET(sync_event_source, ObjectIdGetDatum(event->source));
	else
	{
		SET(sync_event_user_id, UUIDPGetDatum(&key->user_id));
		SET(sync_event_account, PointerGetDatum(key->account));
		SET_UNLESS(event->of_account, sync_event_source, ObjectIdGetDatum(key->source));
		SET_UNLESS(event->of_account, sync_event_resource, PointerGetDatum(key->resource));
	}
	SET_UNLESS(event->lease == NO_COUNT, sync_event_lease, Int64GetDatum(event->lease));
	SET_UNLESS(event->reason == NULL, sync_event_reason, PointerGetDatum(event->reason));
	SET_UNLESS(event->detail == NULL, sync_event_detail, PointerGetDatum(event->detail));
	add(list, &list->events, syncstate_ids()->event_rowtype, values, nulls,
		Natts_sync_event);
}

static void
add_run(NewsList *list, const SyncKey *key, const Run *run)
{
	Datum		values[Natts_sync_run] = {0};
	bool		nulls[Natts_sync_run];
	MemoryContext save;

	memset(nulls, true, sizeof(nulls));
	SET(sync_run_user_id, UUIDPGetDatum(&key->user_id));
	SET(sync_run_account, PointerGetDatum(key->account));
	SET(sync_run_source, ObjectIdGetDatum(key->source));
	SET(sync_run_resource, PointerGetDatum(key->resource));
	SET(sync_run_lease, Int64GetDatum(run->lease));
	SET_UNLESS(run->started_at == NO_TIME, sync_run_started_at,
			   TimestampTzGetDatum(run->started_at));
	SET(sync_run_ended_at, TimestampTzGetDatum(run->ended_at));
	SET(sync_run_outcome, CStringGetTextDatum(syncstate_outcomes[run->outcome]));
	SET(sync_run_was_full, BoolGetDatum(run->was_full));
	SET(sync_run_was_requested, BoolGetDatum(run->was_requested));
	SET_UNLESS(run->items == NO_COUNT, sync_run_items, Int64GetDatum(run->items));
	SET_UNLESS(run->error_message == NULL, sync_run_error_message,
			   PointerGetDatum(run->error_message));
	add(list, &list->runs, syncstate_ids()->run_rowtype, values, nulls,
		Natts_sync_run);
	save = MemoryContextSwitchTo(list->context);
	list->sources = list_append_unique_oid(list->sources, key->source);
	MemoryContextSwitchTo(save);
}

/* Adds what there is to tell of a row that was written. */
void
syncstate_news_row(NewsList *list, const SyncState *row)
{
	if (!syncstate_has_news(row))
		return;
	for (int i = 0; i < NUM_EVENTS; i++)
	{
		EventRow	event = {
			.event = i,
			.at = row->news.at,
			.key = &row->key,
			.lease = row->news.lease,
		};

		if (!(row->news.events & (1 << i)))
			continue;
		if (i == EVENT_PARKED)
			event.reason = row->parked_reason;
		if (i == EVENT_PARKED || i == EVENT_FAILING)
			event.detail = row->error_message;
		if (i == EVENT_FAILING && row->status == SYNC_SYNCING)
			event.detail = cstring_to_text(LEASE_EXPIRED_MESSAGE);
		syncstate_news_event(list, &event);
	}
	if (row->news.has_run)
		add_run(list, &row->key, &row->news.run);
}

/* What this session knows of the oldest rows. */
static Trim *
trim_of(Oid rel, Oid source)
{
	for (int i = 0; i < ntrims; i++)
	{
		if (trims[i].rel == rel && trims[i].source == source)
			return &trims[i];
	}
	trims = trims == NULL ?
		MemoryContextAlloc(TopMemoryContext, sizeof(Trim)) :
		repalloc(trims, (ntrims + 1) * sizeof(Trim));
	trims[ntrims] = (Trim) {.rel = rel,.source = source,.oldest = NO_TIME,.swept_at = NO_TIME};
	return &trims[ntrims++];
}

/*
 * Deletes rows that are older than they are kept: all events, or the runs of a
 * source.
 *
 * A place in the order of time is remembered, since under a snapshot that is
 * held for long what was deleted has to be passed again each time.  What
 * somebody else is deleting is left to them.  A transaction that keeps its
 * snapshot leaves all of it to others, since it could not pass over what they
 * have deleted.
 */
static void
trim(Oid rel, Oid source, int64 keep_for, int nwritten, TimestampTz now)
{
	Trim	   *place = trim_of(rel, source);
	int			max_rows = Max(2 * nwritten, MAX_TRIMMED);
	OldRow	   *rows;
	int			nrows;
	int			nold = 0;

	if (IsolationUsesXactSnapshot())
		return;
	if (syncstate_clock_is_set() || now < place->swept_at ||
		place->swept_at == NO_TIME ||
		now - place->swept_at > keep_for / TRIM_SWEEPS)
	{
		place->oldest = NO_TIME;
		place->swept_at = now;
	}
	else if (place->oldest != NO_TIME &&
			 place->oldest + keep_for + keep_for / TRIM_SLACK > now)
		return;

	rows = syncstate_store_oldest(source, place->oldest, max_rows, &nrows);
	while (nold < nrows && rows[nold].at < now - keep_for)
		nold++;
	if (nold > 0)
		syncstate_store_trim(source, rows, nold);
	place = trim_of(rel, source);	/* triggers of the site's may have made others */
	place->oldest = nold < nrows ? rows[nold].at :
		nrows < max_rows ? now : rows[nrows - 1].at;
}

/*
 * Deletes runs that are too old: of the sources at hand, and of one more in turn,
 * since a source of which no run ends any more has nobody else.
 */
static void
trim_runs(List *sources, int nwritten, TimestampTz now)
{
	static uint32 turn = 0;
	int			nsources;
	SyncPolicy *policies = syncstate_policies(&nsources);

	sources = list_append_unique_oid(sources,
									 policies[syncstate_turn(&turn) % nsources].source);
	for (int i = 0; i < nsources; i++)
	{
		if (list_member_oid(sources, policies[i].source))
			trim(syncstate_ids()->run_rel, policies[i].source,
				 policies[i].keep_runs_for, nwritten, now);
	}
}

/*
 * Writes what a call has to tell, and tells those who listen.  The caller is
 * connected to SPI, and has written its rows.
 */
void
syncstate_news_write(NewsList *list)
{
	TimestampTz now;

	if (list->events.nrows == 0 && list->runs.nrows == 0)
		return;
	now = syncstate_now();
	if (list->events.nrows > 0)
	{
		syncstate_store_events(list->events.rows, list->events.nrows);
		Async_Notify("syncstate_events", "");
		trim(syncstate_ids()->event_rel, InvalidOid, KEEP_EVENTS_FOR,
			 list->events.nrows, now);
	}
	if (list->runs.nrows > 0)
	{
		syncstate_store_runs(list->runs.rows, list->runs.nrows);
		trim_runs(list->sources, list->runs.nrows, now);
	}
}

/* syncstate_take_sync_events(max_rows) -> setof sync_event: see doc/syncstate.md. */
Datum
syncstate_take_sync_events(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	int32		max_rows = syncstate_arg_max_rows(fcinfo, 0, false);
	HeapTuple  *events;
	int			nevents;

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	events = syncstate_store_take_events(max_rows, &nevents);
	for (int i = 0; i < nevents; i++)
		tuplestore_puttuple(rsinfo->setResult, events[i]);
	SPI_finish();
	return (Datum) 0;
}
