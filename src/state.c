/*
 * state.c: a row of sync_state in memory: reading, writing, and its invariants
 *
 * What is done to each column follows from its kind, in columns.h.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "compat.h"
#include "kinds.h"
#include "state.h"

const char *const syncstate_parked_reasons[NUM_PARKED_REASONS] = {
	[PARKED_PAUSED] = "paused",
	[PARKED_AUTH] = "auth",
	[PARKED_FAILURES] = "failures",
	[PARKED_TOKEN_LOOP] = "token_loop",
	[PARKED_GONE] = "gone",
};

/* The kinds of columns. */
typedef enum Kind
{
	KIND_UUID,
	KIND_SOURCE,
	KIND_NAME,
	KIND_STATUS,
	KIND_TOKEN,
	KIND_HISTORY_ID,
	KIND_REASON,
	KIND_MESSAGE,
	KIND_TIME,
	KIND_INTERVAL,
	KIND_NUMBER,
	KIND_COUNT,
	KIND_INTEGER,
	KIND_TALLY,
	KIND_AMOUNT,
	KIND_FLAG,
	NUM_KINDS,
} Kind;

static const Kind kinds[Natts_sync_state] = {
#define KIND(name, kind, writer) KIND_##kind,
	SYNC_STATE_COLUMNS(KIND)
#undef KIND
};

/* Whether a column of this kind may be null. */
static const bool nullable[NUM_KINDS] = {
	[KIND_TOKEN] = true,
	[KIND_HISTORY_ID] = true,
	[KIND_REASON] = true,
	[KIND_MESSAGE] = true,
	[KIND_TIME] = true,
	[KIND_INTERVAL] = true,
	[KIND_COUNT] = true,
	[KIND_TALLY] = true,
	[KIND_AMOUNT] = true,
};

PG_FUNCTION_INFO_V1(syncstate_is_legal);

/*
 * Reads a row from the values of its columns; no ctid, no tuple.  Short texts
 * are detoasted, into the current context; long ones are passed on as they are
 * stored.
 */
void
syncstate_state_from_datums(const Datum *values, const bool *nulls,
							SyncState *row)
{
#define READ(row, name, kind) \
	do { \
		Datum		value = values[Anum_sync_state_##name - 1]; \
		bool		isnull pg_attribute_unused() = nulls[Anum_sync_state_##name - 1]; \
		(row)->name = READ_##kind(name); \
	} while (0);
#define READ_KEY_COLUMN(name, kind, writer) READ(&row->key, name, kind)
#define READ_COLUMN(name, kind, writer) READ(row, name, kind)

	SYNC_KEY_COLUMNS(READ_KEY_COLUMN)
	SYNC_DATA_COLUMNS(READ_COLUMN)
	row->tuple = NULL;
	row->news.events = 0;
	row->news.has_run = false;
	ItemPointerSetInvalid(&row->ctid);
}

/* The values of a row's columns. */
void
syncstate_state_to_datums(const SyncState *row, Datum *values, bool *nulls)
{
#define WRITE(row, name, kind) \
	nulls[Anum_sync_state_##name - 1] = NULL_##kind((row)->name); \
	values[Anum_sync_state_##name - 1] = \
		NULL_##kind((row)->name) ? (Datum) 0 : DATUM_##kind((row)->name);
#define WRITE_KEY_COLUMN(name, kind, writer) WRITE(&row->key, name, kind)
#define WRITE_COLUMN(name, kind, writer) WRITE(row, name, kind)

	SYNC_KEY_COLUMNS(WRITE_KEY_COLUMN)
	SYNC_DATA_COLUMNS(WRITE_COLUMN)
}

/*
 * Reads the row in a slot.  What it points to is the slot's, and good until
 * something else is put in there.
 */
void
syncstate_state_from_slot(TupleTableSlot *slot, SyncState *row)
{
	slot_getallattrs(slot);
	syncstate_state_from_datums(slot->tts_values, slot->tts_isnull, row);
	row->ctid = slot->tts_tid;
	row->tuple = ExecFetchSlotHeapTuple(slot, false, NULL);
}

/* Reads a row that somebody wants to write; columns after ours are ignored. */
void
syncstate_state_from_tuple(HeapTuple tuple, TupleDesc tupdesc, SyncState *row)
{
	Datum	   *values = palloc(tupdesc->natts * sizeof(Datum));
	bool	   *nulls = palloc(tupdesc->natts * sizeof(bool));

	heap_deform_tuple(tuple, tupdesc, values, nulls);

	/*
	 * NOT NULL is checked after the triggers.  Say the same here, but without
	 * the whole row, which has secrets.
	 */
	for (int i = 0; i < Natts_sync_state; i++)
	{
		if (nulls[i] && TupleDescAttr(tupdesc, i)->attnotnull)
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("null value in column \"%s\" of relation \"%s\" violates not-null constraint",
							NameStr(TupleDescAttr(tupdesc, i)->attname),
							"sync_state")));
	}
	syncstate_state_from_datums(values, nulls, row);
	row->ctid = tuple->t_self;
}

/* A tuple with our columns replaced; columns of others stay. */
HeapTuple
syncstate_state_into_tuple(const SyncState *row, HeapTuple tuple,
						   TupleDesc tupdesc)
{
	Datum	   *values = palloc0(tupdesc->natts * sizeof(Datum));
	bool	   *nulls = palloc0(tupdesc->natts * sizeof(bool));
	bool	   *replace = palloc0(tupdesc->natts * sizeof(bool));

	syncstate_state_to_datums(row, values, nulls);
	memset(replace, true, Natts_sync_state * sizeof(bool));
	return heap_modify_tuple(tuple, tupdesc, values, nulls, replace);
}

/* Compares the bytes of two texts, as collation "C" does. */
int
syncstate_compare_text(const text *a, const text *b)
{
	const text *x = pg_detoast_datum_packed(unconstify(text *, a));
	const text *y = pg_detoast_datum_packed(unconstify(text *, b));
	int			x_len = VARSIZE_ANY_EXHDR(x);
	int			y_len = VARSIZE_ANY_EXHDR(y);
	int			cmp = memcmp(VARDATA_ANY(x), VARDATA_ANY(y), Min(x_len, y_len));

	return cmp != 0 ? cmp : x_len - y_len;
}

/* Whether two texts are the same bytes; NULL is the same as NULL. */
bool
syncstate_same_text(const text *a, const text *b)
{
	if (a == NULL || b == NULL || a == b)
		return a == b;
	return syncstate_compare_text(a, b) == 0;
}

bool
syncstate_same_key(const SyncKey *a, const SyncKey *b)
{
	return memcmp(&a->user_id, &b->user_id, UUID_LEN) == 0 &&
		a->source == b->source &&
		syncstate_same_text(a->account, b->account) &&
		syncstate_same_text(a->resource, b->resource);
}

static bool
same_interval(const Interval *a, const Interval *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return a->time == b->time && a->day == b->day && a->month == b->month;
}

/*
 * Gives each column of "row" that is as in "old" the value that it has in
 * "derived": what a client changed wins over what follows from it.
 */
void
syncstate_state_keep(const SyncState *old, const SyncState *derived,
					 SyncState *row)
{
#define SAME_STATUS(a, b)	((a) == (b))
#define SAME_TOKEN(a, b)	syncstate_same_text(a, b)
#define SAME_HISTORY_ID(a, b)	syncstate_same_text(a, b)
#define SAME_REASON(a, b)	syncstate_same_text(a, b)
#define SAME_MESSAGE(a, b)	syncstate_same_text(a, b)
#define SAME_TIME(a, b)		((a) == (b))
#define SAME_INTERVAL(a, b)	same_interval(a, b)
#define SAME_NUMBER(a, b)	((a) == (b))
#define SAME_COUNT(a, b)	((a) == (b))
#define SAME_INTEGER(a, b)	((a) == (b))
#define SAME_TALLY(a, b)	((a) == (b))
#define SAME_AMOUNT(a, b)	((a) == (b))
#define SAME_FLAG(a, b)		((a) == (b))

#define KEEP(name, kind, writer) \
	if (SAME_##kind(row->name, old->name)) \
		row->name = derived->name;

	SYNC_DATA_COLUMNS(KEEP)
}

/* Raises the error of the CHECK, which says what a row breaks. */
static void
breaks(const char *invariant)
{
	ereport(ERROR,
			(errcode(ERRCODE_CHECK_VIOLATION),
			 errmsg("new row for relation \"%s\" violates check constraint \"%s\"",
					"sync_state", "sync_state_is_legal"),
			 errdetail_internal("%s", invariant),
			 err_generic_string(PG_DIAG_SCHEMA_NAME, "syncstate"),
			 err_generic_string(PG_DIAG_TABLE_NAME, "sync_state"),
			 err_generic_string(PG_DIAG_CONSTRAINT_NAME, "sync_state_is_legal")));
}

/* Checks what reading a row would refuse with another error. */
static void
check_datums(const Datum *values, const bool *nulls)
{
	for (int i = 0; i < Natts_sync_state; i++)
	{
		if (nulls[i] && !nullable[kinds[i]])
			breaks("A column that is NOT NULL is null.");
	}
	for (int i = 0; i < Natts_sync_state; i++)
	{
		if (nulls[i])
			continue;
		if (kinds[i] == KIND_TIME && !IS_LEGAL_TIME(DatumGetTimestampTz(values[i])))
			breaks("Times are of the years 1 to 9999.");
		if (kinds[i] == KIND_AMOUNT && !(DatumGetFloat8(values[i]) >= 0 &&
										 DatumGetFloat8(values[i]) <= MAX_AMOUNT))
			breaks("changes_seen and seconds_watched are both null, or both from 0 to 1e+12.");
	}
}

/* Whether a row is parked for this reason. */
bool
syncstate_is_parked_for(const SyncState *row, ParkedReason reason)
{
	const char *word = syncstate_parked_reasons[reason];

	return row->parked_reason != NULL &&
		VARSIZE_ANY_EXHDR(row->parked_reason) == strlen(word) &&
		memcmp(VARDATA_ANY(row->parked_reason), word, strlen(word)) == 0;
}

static bool
has_parked_reason(const SyncState *row)
{
	for (int i = 0; i < NUM_PARKED_REASONS; i++)
	{
		if (syncstate_is_parked_for(row, i))
			return true;
	}
	return false;
}

/* Checks the invariants. */
static void
check_state(const SyncState *row)
{
	if ((row->changes_seen == NO_AMOUNT) != (row->seconds_watched == NO_AMOUNT))
		breaks("changes_seen and seconds_watched are both null, or both from 0 to 1e+12.");
	if ((row->due_at == NO_TIME) != (row->parked_reason != NULL))
		breaks("Either due_at is set or parked_reason.");
	if (row->parked_reason != NULL && !has_parked_reason(row))
		breaks("parked_reason is \"paused\", \"auth\", \"failures\", \"token_loop\" or \"gone\".");
	if ((row->status == SYNC_SYNCING) != (row->lease_expires_at != NO_TIME))
		breaks("lease_expires_at is set exactly while status is \"syncing\".");
	if (row->lease_required && row->status != SYNC_SYNCING)
		breaks("lease_required is false unless status is \"syncing\".");
	if (row->run_requested_at != NO_TIME && row->status != SYNC_SYNCING)
		breaks("run_requested_at is null unless status is \"syncing\".");
	if ((row->failures > 0) != (row->failing_since != NO_TIME))
		breaks("failing_since is set exactly while failures is not 0.");
	if (VARSIZE_ANY_EXHDR(row->key.account) > MAX_ACCOUNT_BYTES)
		breaks("account is at most 255 bytes long.");
	if (VARSIZE_ANY_EXHDR(row->key.resource) > MAX_RESOURCE_BYTES)
		breaks("resource is at most 1024 bytes long.");
	if (syncstate_text_bytes(row->sync_token) > MAX_TOKEN_BYTES)
		breaks("sync_token is at most 65536 bytes long.");
	if (syncstate_text_bytes(row->page_token) > MAX_TOKEN_BYTES)
		breaks("page_token is at most 65536 bytes long.");
	if (syncstate_text_bytes(row->error_message) > MAX_ERROR_BYTES)
		breaks("error_message is at most 8192 bytes long.");
	if (row->history_id != NULL && !syncstate_is_history_id(row->history_id))
		breaks("history_id is a decimal number from 0 to 18446744073709551615, without leading zeros.");
	if (row->sync_interval != NULL &&
		!syncstate_is_duration(row->sync_interval, MIN_DURATION, MAX_DURATION))
		breaks("sync_interval is from 1 second to 36500 days, without months.");
	if (row->lease < 0 || row->items_synced < 0 || row->failures < 0 ||
		row->token_losses < 0 || row->syncs_started < 0)
		breaks("lease, items_synced, failures, token_losses and syncs_started are 0 or more.");
}

/* Reads a row that is an argument of a function. */
void
syncstate_state_from_header(HeapTupleHeader header, SyncState *row)
{
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header),
												 HeapTupleHeaderGetTypMod(header));
	HeapTupleData tuple = {
		.t_len = HeapTupleHeaderGetDatumLength(header),
		.t_data = header,
	};
	Datum	   *values = palloc(tupdesc->natts * sizeof(Datum));
	bool	   *nulls = palloc(tupdesc->natts * sizeof(bool));

	ItemPointerSetInvalid(&tuple.t_self);
	heap_deform_tuple(&tuple, tupdesc, values, nulls);
	ReleaseTupleDesc(tupdesc);
	check_datums(values, nulls);
	syncstate_state_from_datums(values, nulls, row);
}

/*
 * syncstate_is_legal(sync_state) -> boolean: see doc/syncstate.md.
 *
 * The CHECK of the table: one function in C instead of a dozen expressions,
 * since the server reads the stored expressions of all CHECKs for each
 * statement.
 */
Datum
syncstate_is_legal(PG_FUNCTION_ARGS)
{
	SyncState	row;

	if (!PG_ARGISNULL(0))
	{
		syncstate_state_from_header(PG_GETARG_HEAPTUPLEHEADER(0), &row);
		check_state(&row);
	}
	PG_RETURN_BOOL(true);
}

/*
 * Checks a row that a client made up, with errors that name the column, and
 * tidies it.
 */
void
syncstate_state_check(SyncState *row)
{
#define CHECK_STATUS(name)
#define CHECK_TOKEN(name) \
	syncstate_check_text_size(#name, row->name, MAX_TOKEN_BYTES)
#define CHECK_HISTORY_ID(name) \
	syncstate_check_text_size(#name, row->name, MAX_TOKEN_BYTES); \
	if (row->name != NULL) \
		row->name = syncstate_tidy_history_id(row->name); \
	if (row->name != NULL) \
		syncstate_check_history_id(#name, row->name)
#define CHECK_REASON(name) \
	if (row->name != NULL) \
		syncstate_check_word(#name, text_to_cstring(row->name), \
							 syncstate_parked_reasons, NUM_PARKED_REASONS)
#define CHECK_MESSAGE(name) \
	if (row->name != NULL) \
		row->name = syncstate_cut_message(pg_detoast_datum_packed(row->name))
#define CHECK_TIME(name) \
	if (row->name != NO_TIME) \
		syncstate_check_time(#name, row->name)
#define CHECK_INTERVAL(name) \
	if (row->name != NULL) \
		syncstate_check_duration(#name, row->name, MIN_DURATION, MAX_DURATION)
#define CHECK_NUMBER(name) syncstate_check_count(#name, row->name)
#define CHECK_COUNT(name)	/* checked as it was read */
#define CHECK_INTEGER(name) syncstate_check_count(#name, row->name)
#define CHECK_TALLY(name)	CHECK_INTEGER(name)
#define CHECK_AMOUNT(name)
#define CHECK_FLAG(name)

#define CHECK(name, kind, writer) CHECK_##kind(name);

	SYNC_DATA_COLUMNS(CHECK)
}
