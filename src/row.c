/*-------------------------------------------------------------------------
 *
 * row.c
 *		Rows of sync_state: between tuples and SyncState, locking, writing
 *
 * There are three ways to a row, and a RowAccess knows which one the table and
 * the caller allow:
 *
 *	plain	Nothing of the site's has a say before a row is written.  It is read
 *			through the primary key or by a walk, changed in memory, and written
 *			as a new version, if nobody has touched the old one meanwhile.
 *	direct	The site has constraints, or triggers before a row.  A row is
 *			locked, and written by the executor's function for one tuple, which
 *			sees to them.
 *	else	Row security, triggers per statement, or missing privileges have a
 *			say.  A row is locked and written by statements of store.c.
 *
 * The first costs less than half of what statements do: no plan is started,
 * and no lock is taken, and logged, that the new version makes needless.
 *
 * The callers are connected to SPI; what a row points to lives until the next
 * one is read, results live in the caller's outer context.
 *
 * src/row.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#if PG_VERSION_NUM >= 160000
#include "parser/parse_relation.h"
#endif
#include "rewrite/rowsecurity.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "syncstate.h"

#if PG_VERSION_NUM < 160000
#define object_aclcheck(class, oid, role, mode) \
	pg_proc_aclcheck(oid, role, mode)
#endif

/*
 * Where this session has put the rows whose syncs it started.  Mostly it is the
 * one that ends them too, and finds them here for a sixth of what the search in
 * the primary key costs.  Keys share these places by their hash, and a row may
 * have moved on since, so whatever is found is checked.
 */
#define NUM_PLACES		8192

static ItemPointerData places[NUM_PLACES];

static bool goes_direct(Relation rel);
static bool is_plain(Relation rel);
static bool fires_after(Relation rel);
static void end_look(RowAccess *rows);
static bool find_key(RowAccess *rows, const SyncKey *key);
static bool find_place(RowAccess *rows, const SyncKey *key);
static ItemPointer place_of(const SyncKey *key);
static void begin_writing(RowAccess *rows);
static void begin_executing(RowAccess *rows);
static EState *writing_state(Relation rel, ResultRelInfo **target);
static TM_Result update_plain(RowAccess *rows, const SyncState *row, bool wait);
static void update_with_triggers(RowAccess *rows, const SyncState *row);
static void fill_slot(TupleTableSlot *slot, const SyncState *row);
static SyncStatus status_of(Oid label);
static TimestampTz time_of(Datum value, const char *column);
static int64 count_of(Datum value, const char *column);
static double amount_of(Datum value, const char *column);

/* ------------------------------------------------- tuples and SyncState */

/* The status that an enum label stands for. */
static SyncStatus
status_of(Oid label)
{
	const StoreIds *current = syncstate_store_ids();

	for (int i = 0; i < NUM_STATUSES; i++)
	{
		if (current->status_labels[i] == label)
			return (SyncStatus) i;
	}
	elog(ERROR, "unexpected sync status %u", label);
	return SYNC_IDLE;			/* keep compiler quiet */
}

/*
 * The values that stand for null are refused where somebody writes them as
 * values: none of ours has them, the CHECK sees to that.
 */
static TimestampTz
time_of(Datum value, const char *column)
{
	if (DatumGetTimestampTz(value) == NO_TIME)
		syncstate_check_time(column, NO_TIME);
	return DatumGetTimestampTz(value);
}

static int64
count_of(Datum value, const char *column)
{
	syncstate_check_count(column, DatumGetInt64(value));
	return DatumGetInt64(value);
}

static double
amount_of(Datum value, const char *column)
{
	syncstate_check_amount(column, DatumGetFloat8(value));
	return DatumGetFloat8(value);
}

/* Reads a row from the values of its columns; no ctid, no tuple. */
void
syncstate_state_from_datums(const Datum *values, const bool *nulls,
							SyncState *row)
{
#define VALUE(column)	values[Anum_sync_state_##column - 1]
#define IS_NULL(column)	nulls[Anum_sync_state_##column - 1]
#define TIME(column) \
	(IS_NULL(column) ? NO_TIME : time_of(VALUE(column), #column))
#define TEXT(column) \
	(IS_NULL(column) ? NULL : (text *) DatumGetPointer(VALUE(column)))
#define COUNT(column) \
	(IS_NULL(column) ? NO_COUNT : count_of(VALUE(column), #column))
#define AMOUNT(column) \
	(IS_NULL(column) ? NO_AMOUNT : amount_of(VALUE(column), #column))

	row->key.user_id = *DatumGetUUIDP(VALUE(user_id));
	row->key.source = DatumGetObjectId(VALUE(source));
	row->key.resource = DatumGetTextPP(VALUE(resource));
	row->status = status_of(DatumGetObjectId(VALUE(status)));
	row->sync_token = TEXT(sync_token);
	/* looked into; the long texts are only passed on, as they are stored */
	row->history_id = IS_NULL(history_id) ? NULL :
		DatumGetTextPP(VALUE(history_id));
	row->updated_min = TIME(updated_min);
	row->token_issued_at = TIME(token_issued_at);
	row->last_full_sync_at = TIME(last_full_sync_at);
	row->due_at = TIME(due_at);
	row->requested_at = TIME(requested_at);
	row->parked_reason = IS_NULL(parked_reason) ? NULL :
		DatumGetTextPP(VALUE(parked_reason));
	row->sync_interval = IS_NULL(sync_interval) ? NULL :
		DatumGetIntervalP(VALUE(sync_interval));
	row->lease = DatumGetInt64(VALUE(lease));
	row->lease_expires_at = TIME(lease_expires_at);
	row->last_sync_at = TIME(last_sync_at);
	row->last_successful_sync_at = TIME(last_successful_sync_at);
	row->items_synced = DatumGetInt64(VALUE(items_synced));
	row->page_token = TEXT(page_token);
	row->progress_done = COUNT(progress_done);
	row->progress_total = COUNT(progress_total);
	row->failures = DatumGetInt32(VALUE(failures));
	row->token_losses = DatumGetInt32(VALUE(token_losses));
	row->error_message = TEXT(error_message);
	row->created_at = TIME(created_at);
	row->updated_at = TIME(updated_at);
	row->failing_since = TIME(failing_since);
	row->changes_seen = AMOUNT(changes_seen);
	row->seconds_watched = AMOUNT(seconds_watched);
	row->tuple = NULL;

#undef VALUE
#undef IS_NULL
#undef TIME
#undef TEXT
#undef COUNT
#undef AMOUNT
}

/* The values of a row's columns; keep in sync with the function above. */
void
syncstate_state_to_datums(const SyncState *row, Datum *values, bool *nulls)
{
#define SET(column, is_null, value) \
	do { \
		nulls[Anum_sync_state_##column - 1] = (is_null); \
		values[Anum_sync_state_##column - 1] = \
			nulls[Anum_sync_state_##column - 1] ? (Datum) 0 : (value); \
	} while (0)
#define SET_TIME(column) \
	SET(column, row->column == NO_TIME, TimestampTzGetDatum(row->column))
#define SET_TEXT(column) \
	SET(column, row->column == NULL, PointerGetDatum(row->column))
#define SET_COUNT(column) \
	SET(column, row->column == NO_COUNT, Int64GetDatum(row->column))
#define SET_AMOUNT(column) \
	SET(column, row->column == NO_AMOUNT, Float8GetDatum(row->column))

	SET(user_id, false, UUIDPGetDatum(&row->key.user_id));
	SET(source, false, ObjectIdGetDatum(row->key.source));
	SET(resource, false, PointerGetDatum(row->key.resource));
	SET(status, false,
		ObjectIdGetDatum(syncstate_store_ids()->status_labels[row->status]));
	SET_TEXT(sync_token);
	SET_TEXT(history_id);
	SET_TIME(updated_min);
	SET_TIME(token_issued_at);
	SET_TIME(last_full_sync_at);
	SET_TIME(due_at);
	SET_TIME(requested_at);
	SET_TEXT(parked_reason);
	SET(sync_interval, row->sync_interval == NULL,
		IntervalPGetDatum(row->sync_interval));
	SET(lease, false, Int64GetDatum(row->lease));
	SET_TIME(lease_expires_at);
	SET_TIME(last_sync_at);
	SET_TIME(last_successful_sync_at);
	SET(items_synced, false, Int64GetDatum(row->items_synced));
	SET_TEXT(page_token);
	SET_COUNT(progress_done);
	SET_COUNT(progress_total);
	SET(failures, false, Int32GetDatum(row->failures));
	SET(token_losses, false, Int32GetDatum(row->token_losses));
	SET_TEXT(error_message);
	SET_TIME(created_at);
	SET_TIME(updated_at);
	SET_TIME(failing_since);
	SET_AMOUNT(changes_seen);
	SET_AMOUNT(seconds_watched);

#undef SET
#undef SET_TIME
#undef SET_TEXT
#undef SET_COUNT
#undef SET_AMOUNT
}

/*
 * Reads the row in a slot.  What it points to is the slot's, and good until
 * something else is put in there.
 */
void
syncstate_row_from_slot(TupleTableSlot *slot, SyncState *row)
{
	slot_getallattrs(slot);
	syncstate_state_from_datums(slot->tts_values, slot->tts_isnull, row);
	row->ctid = slot->tts_tid;
	row->tuple = ExecFetchSlotHeapTuple(slot, false, NULL);
}

/* ---------------------------------------------------------- which way */

/*
 * Whether statements would do no more to the rows of this table than the
 * executor's function for one tuple.
 *
 * Row security: a worker (whoever may execute claim_due_syncs()) sees and
 * changes all rows, by our policies and by any permissive ones that a site
 * adds; a restrictive one narrows that, and its expression takes a statement.
 * Rules and triggers per statement take a statement as well.  A caller who
 * lacks privileges on the table shall hear it from the statement.
 */
static bool
goes_direct(Relation rel)
{
	const StoreIds *ids = syncstate_store_ids();
	TriggerDesc *triggers = rel->trigdesc;
	AclMode		mode = ACL_SELECT | ACL_UPDATE;
	ListCell   *lc;

	if (rel->rd_rules != NULL)
		return false;
	if (triggers != NULL &&
		(triggers->trig_update_before_statement ||
		 triggers->trig_update_after_statement ||
		 triggers->trig_update_old_table || triggers->trig_update_new_table))
		return false;
	if (pg_class_aclmask(ids->state_rel, GetUserId(), mode, ACLMASK_ALL) != mode)
		return false;

	if (check_enable_rls(ids->state_rel, InvalidOid, false) != RLS_ENABLED)
		return true;
	if (object_aclcheck(ProcedureRelationId, ids->claim_function, GetUserId(),
						ACL_EXECUTE) != ACLCHECK_OK)
		return false;
	foreach(lc, rel->rd_rsdesc->policies)
	{
		if (!((RowSecurityPolicy *) lfirst(lc))->permissive)
			return false;
	}
	return true;
}

/*
 * Opens the table to the calls below.  The caller holds it open until
 * syncstate_rows_close(); after an error nothing needs to be closed.
 */
void
syncstate_rows_open(RowAccess *rows)
{
	MemSet(rows, 0, sizeof(*rows));
	rows->rel = table_open(syncstate_store_ids()->state_rel, RowExclusiveLock);
	rows->direct = goes_direct(rows->rel);
	rows->plain = rows->direct && is_plain(rows->rel);
	if (rows->direct)
	{
		PreventCommandIfReadOnly("UPDATE");
		PreventCommandIfParallelMode("UPDATE");
	}
}

void
syncstate_rows_close(RowAccess *rows)
{
	end_look(rows);
	if (rows->estate != NULL)
	{
		if (!rows->plain || fires_after(rows->rel))
			AfterTriggerEndQuery(rows->estate);
		if (!rows->plain)
			EvalPlanQualEnd(&rows->epqstate);
		ExecCloseResultRelations(rows->estate);
		ExecResetTupleTable(rows->estate->es_tupleTable, false);
		FreeExecutorState(rows->estate);
	}
	if (rows->new != NULL)
	{
		ExecDropSingleTupleTableSlot(rows->new);

		/* what comes next in this transaction sees what was written */
		CommandCounterIncrement();
	}
	table_close(rows->rel, NoLock);
}

/* ------------------------------------------------- reading and locking */

/*
 * Looks at the table as it is now, with what this transaction has done to it:
 * what the reads below see, until the next look.
 */
void
syncstate_rows_look(RowAccess *rows)
{
	end_look(rows);
	if (!rows->direct)
		return;
	CommandCounterIncrement();
	PushCopiedSnapshot(GetTransactionSnapshot());
	UpdateActiveSnapshotCommandId();
	rows->nblocks = RelationGetNumberOfBlocks(rows->rel);
	rows->slot = table_slot_create(rows->rel, NULL);
}

static void
end_look(RowAccess *rows)
{
	if (rows->slot == NULL)
		return;
	ExecDropSingleTupleTableSlot(rows->slot);
	rows->slot = NULL;
	if (rows->scan != NULL)
	{
		index_endscan(rows->scan);
		index_close(rows->pkey, NoLock);
		rows->scan = NULL;
	}
	PopActiveSnapshot();
}

/*
 * Reads the row of a key, without a lock: for syncstate_rows_try().  False if
 * there is none to be seen, or if this is not the way to go.
 */
bool
syncstate_rows_read(RowAccess *rows, const SyncKey *key, SyncState *row)
{
	if (!rows->plain || !find_key(rows, key))
		return false;
	syncstate_row_from_slot(rows->slot, row);
	return true;
}

/*
 * Locks and reads the row of a key, waiting for whoever has it; false if there
 * is none to be seen.  Whoever locks several does it in the order of the
 * primary key, so that no two of them deadlock.
 */
bool
syncstate_rows_lock(RowAccess *rows, const SyncKey *key, SyncState *row)
{
	TM_Result	result;

	if (!rows->direct)
		return syncstate_store_lock(key, row);
	if (!find_key(rows, key))
		return false;
	result = syncstate_rows_lock_tid(rows, rows->slot->tts_tid,
									 GetActiveSnapshot(), rows->slot,
									 LockWaitBlock, row);
	if ((result == TM_Updated || result == TM_Deleted) &&
		IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent %s",
						result == TM_Updated ? "update" : "delete")));
	return result == TM_Ok;
}

/*
 * Locks and reads the row whose version a snapshot sees at tid; the newest
 * version, since the key of a row never changes, unless the transaction keeps
 * its snapshot.  The slot is for the walk's or the look's use.
 */
TM_Result
syncstate_rows_lock_tid(RowAccess *rows, ItemPointerData tid, Snapshot snapshot,
						TupleTableSlot *slot, LockWaitPolicy wait,
						SyncState *row)
{
	int			flags = TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS;
	TM_FailureData tmfd;
	TM_Result	result;

	if (!IsolationUsesXactSnapshot())
		flags |= TUPLE_LOCK_FLAG_FIND_LAST_VERSION;
	result = table_tuple_lock(rows->rel, &tid, snapshot, slot,
							  GetCurrentCommandId(true),
							  LockTupleNoKeyExclusive, wait, flags, &tmfd);
	if (result != TM_Ok)
		return result;

	/* statements of others may be run before it is written: no pin for so long */
	ExecMaterializeSlot(slot);
	syncstate_row_from_slot(slot, row);
	if (!rows->direct)
		row->tuple = NULL;
	return TM_Ok;
}

/* Puts the row of a key, as the look sees it, into the slot. */
static bool
find_key(RowAccess *rows, const SyncKey *key)
{
	ScanKeyData keys[3];

	CHECK_FOR_INTERRUPTS();
	if (find_place(rows, key))
		return true;

	if (rows->scan == NULL)
	{
		rows->pkey = index_open(syncstate_store_ids()->pkey_index,
								RowExclusiveLock);
		rows->scan = index_beginscan(rows->rel, rows->pkey,
									 GetActiveSnapshot(), 3, 0);
	}
	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid,
						   InvalidOid, F_UUID_EQ, UUIDPGetDatum(&key->user_id));
	ScanKeyEntryInitialize(&keys[1], 0, 2, BTEqualStrategyNumber, InvalidOid,
						   InvalidOid, F_ENUM_EQ, ObjectIdGetDatum(key->source));
	ScanKeyEntryInitialize(&keys[2], 0, 3, BTEqualStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXTEQ,
						   PointerGetDatum(key->resource));
	index_rescan(rows->scan, keys, 3, NULL, 0);
	return index_getnext_slot(rows->scan, ForwardScanDirection, rows->slot);
}

/* Finds the row of a key where this session has put it. */
static bool
find_place(RowAccess *rows, const SyncKey *key)
{
	TupleTableSlot *slot = rows->slot;
	ItemPointerData tid = *place_of(key);
	SyncKey		found;

	/* the table may have shrunk */
	if (!ItemPointerIsValid(&tid) ||
		ItemPointerGetBlockNumber(&tid) >= rows->nblocks ||
		!syncstate_fetch_version(rows->rel, tid, GetActiveSnapshot(), slot))
		return false;

	slot_getallattrs(slot);
	found.user_id = *DatumGetUUIDP(slot->tts_values[Anum_sync_state_user_id - 1]);
	found.source = DatumGetObjectId(slot->tts_values[Anum_sync_state_source - 1]);
	found.resource = DatumGetTextPP(slot->tts_values[Anum_sync_state_resource - 1]);
	return syncstate_same_key(&found, key);
}

/*
 * Reads the version at a tid, if a snapshot sees it and its page has room for
 * one more.  An index scan prunes each page that is filled beyond fillfactor,
 * as those of rows at work are: at each claim, and for half of what all the
 * rest of it costs.  Where this says no, it is time for that.
 */
bool
syncstate_fetch_version(Relation rel, ItemPointerData tid, Snapshot snapshot,
						TupleTableSlot *slot)
{
	if (!TTS_IS_BUFFERTUPLE(slot) ||
		!table_tuple_fetch_row_version(rel, &tid, snapshot, slot))
		return false;
	if (PageGetHeapFreeSpace(BufferGetPage(((BufferHeapTupleTableSlot *) slot)->buffer)) >=
		MAXALIGN(ExecFetchSlotHeapTuple(slot, false, NULL)->t_len))
		return true;

	/* a page that is pinned is not pruned */
	ExecClearTuple(slot);
	return false;
}

/* The place that a key shares with a few others. */
static ItemPointer
place_of(const SyncKey *key)
{
	uint32		hash = hash_bytes(key->user_id.data, UUID_LEN);

	hash = hash_combine(hash, hash_uint32(key->source));
	hash = hash_combine(hash,
						hash_bytes((unsigned char *) VARDATA_ANY(key->resource),
								   VARSIZE_ANY_EXHDR(key->resource)));
	return &places[hash % NUM_PLACES];
}

/* ------------------------------------------------------------ writing */

/*
 * Writes a row that was read but not locked, if nobody has changed or locked
 * it since: one visit to the row instead of two, and one record of WAL.
 *
 * Returns TM_Ok, and the row as it is now in the caller's outer context; or why
 * not, without having waited: then lock the row, look at it again, and write
 * that.
 */
TM_Result
syncstate_rows_try(RowAccess *rows, const SyncState *row, HeapTuple *result)
{
	TM_Result	done;

	Assert(rows->plain && row->tuple != NULL);
	begin_writing(rows);
	done = update_plain(rows, row, false);
	if (done == TM_Ok)
		*result = SPI_copytuple(ExecFetchSlotHeapTuple(rows->new, true, NULL));
	ExecClearTuple(rows->new);
	return done;
}

/*
 * Writes a row that was locked in this transaction.  Returns the row as it is
 * now, in the caller's outer context; NULL if row security or a trigger of the
 * site's kept it from being written.
 */
HeapTuple
syncstate_rows_write(RowAccess *rows, const SyncState *row)
{
	HeapTuple	result = NULL;

	if (!rows->direct)
		return syncstate_store_write(row);

	begin_writing(rows);
	if (rows->plain)
	{
		TM_Result	done = update_plain(rows, row, true);

		if (done != TM_Ok)
			elog(ERROR, "unexpected result %d of changing a sync state", done);
	}
	else
		update_with_triggers(rows, row);
	if (ItemPointerIsValid(&rows->new->tts_tid))
		result = SPI_copytuple(ExecFetchSlotHeapTuple(rows->new, true, NULL));
	ExecClearTuple(rows->new);
	return result;
}

/*
 * Whether nothing of the site's has a say before a row is written: no trigger
 * and no constraint.  Our trigger lets our own writes pass, and our CHECK holds
 * for whatever the transitions make of a legal row: neither needs to be asked.
 */
static bool
is_plain(Relation rel)
{
	TriggerDesc *triggers = rel->trigdesc;
	TupleConstr *constraints = RelationGetDescr(rel)->constr;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		if (TRIGGER_TYPE_MATCHES(trigger->tgtype, TRIGGER_TYPE_ROW,
								 TRIGGER_TYPE_BEFORE, TRIGGER_TYPE_UPDATE) &&
			trigger->tgfoid != syncstate_store_ids()->guard_function)
			return false;
	}
	return constraints != NULL && constraints->num_check == 1 &&
		strcmp(constraints->check[0].ccname, "sync_state_is_legal") == 0 &&
#if PG_VERSION_NUM >= 180000
		!constraints->has_generated_virtual &&
#endif
		!constraints->has_generated_stored;
}

/* Whether the table has triggers after an update of a row: the site's. */
static bool
fires_after(Relation rel)
{
	return rel->trigdesc != NULL && rel->trigdesc->trig_update_after_row;
}

/* Changes a tuple, and the indexes unless the change is HOT. */
static TM_Result
update_plain(RowAccess *rows, const SyncState *row, bool wait)
{
	ItemPointerData tid = row->ctid;
	TM_FailureData tmfd;
	LockTupleMode lockmode;
#if PG_VERSION_NUM >= 160000
	TU_UpdateIndexes update_indexes;
#else
	bool		update_indexes;
#endif
	TM_Result	result;
	List	   *recheck = NIL;

	fill_slot(rows->new, row);
#ifdef USE_ASSERT_CHECKING
	begin_executing(rows);
	ExecConstraints(rows->target, rows->new, rows->estate);
#endif
	result = table_tuple_update(rows->rel, &tid, rows->new,
								GetCurrentCommandId(true),
								GetActiveSnapshot(), InvalidSnapshot, wait,
								&tmfd, &lockmode, &update_indexes);
	if (result != TM_Ok)
		return result;
	if (row->status == SYNC_SYNCING)
		*place_of(&row->key) = rows->new->tts_tid;
	if (update_indexes)
	{
		begin_executing(rows);
		recheck = ExecInsertIndexTuples(rows->target, rows->new, rows->estate,
										true, false, NULL, NIL
#if PG_VERSION_NUM >= 160000
										,update_indexes == TU_Summarizing
#endif
			);
	}
	if (fires_after(rows->rel))
	{
		begin_executing(rows);
		ExecARUpdateTriggers(rows->estate, rows->target, NULL, NULL, &tid, NULL,
							 rows->new, recheck, NULL, false);
	}
	return TM_Ok;
}

/* Changes a tuple as UPDATE would: by what the apply worker uses. */
static void
update_with_triggers(RowAccess *rows, const SyncState *row)
{
	bool		save_writing;

	begin_executing(rows);
	save_writing = syncstate_store_set_writing(true);
	PG_TRY();
	{
		fill_slot(rows->new, row);
		rows->old->tts_tid = row->ctid;
		ExecSimpleRelationUpdate(rows->target, rows->estate, &rows->epqstate,
								 rows->old, rows->new);
	}
	PG_FINALLY();
	{
		(void) syncstate_store_set_writing(save_writing);
	}
	PG_END_TRY();
}

static void
begin_writing(RowAccess *rows)
{
	if (rows->new == NULL)
	{
		CheckCmdReplicaIdentity(rows->rel, CMD_UPDATE);
		rows->new = table_slot_create(rows->rel, NULL);
	}
}

/*
 * Makes what the executor's functions need around them, as the apply worker
 * of logical replication does.  A change that is HOT and plain, as claims and
 * heartbeats are, needs none of it.
 */
static void
begin_executing(RowAccess *rows)
{
	Relation	rel = rows->rel;

	if (rows->estate != NULL)
	{
		ResetPerTupleExprContext(rows->estate);
		return;
	}
	rows->estate = writing_state(rel, &rows->target);
	ExecOpenIndices(rows->target, false);
	if (!rows->plain || fires_after(rel))
		AfterTriggerBeginQuery();
	if (rows->plain)
		return;
	rows->old = ExecInitExtraTupleSlot(rows->estate, RelationGetDescr(rel),
									   table_slot_callbacks(rel));
#if PG_VERSION_NUM >= 160000
	EvalPlanQualInit(&rows->epqstate, rows->estate, NULL, NIL, -1, NIL);
#else
	EvalPlanQualInit(&rows->epqstate, rows->estate, NULL, NIL, -1);
#endif
}

/* The executor's state for changing rows of the table. */
static EState *
writing_state(Relation rel, ResultRelInfo **target)
{
	EState	   *estate = CreateExecutorState();
	RangeTblEntry *rte = makeNode(RangeTblEntry);
	Bitmapset  *columns = NULL;
	ResultRelInfo *info;

	/* triggers may be for certain columns: we may have changed any but these */
	for (int i = Anum_sync_state_status; i <= Natts_sync_state; i++)
	{
		if (i != Anum_sync_state_created_at)
			columns = bms_add_member(columns,
									 i - FirstLowInvalidHeapAttributeNumber);
	}

	rte->rtekind = RTE_RELATION;
	rte->relid = RelationGetRelid(rel);
	rte->relkind = rel->rd_rel->relkind;
	rte->rellockmode = RowExclusiveLock;
#if PG_VERSION_NUM >= 160000
	{
		List	   *perminfos = NIL;

		addRTEPermissionInfo(&perminfos, rte)->updatedCols = columns;
#if PG_VERSION_NUM >= 180000
		ExecInitRangeTable(estate, list_make1(rte), perminfos,
						   bms_make_singleton(1));
#else
		ExecInitRangeTable(estate, list_make1(rte), perminfos);
#endif
	}
#else
	rte->updatedCols = columns;
	ExecInitRangeTable(estate, list_make1(rte));
#endif

	estate->es_snapshot = GetActiveSnapshot();
	estate->es_output_cid = GetCurrentCommandId(true);
	info = makeNode(ResultRelInfo);
	InitResultRelInfo(info, rel, 1, NULL, 0);
	estate->es_opened_result_relations =
		lappend(estate->es_opened_result_relations, info);
	*target = info;
	return estate;
}

/* Puts a row into a slot; columns that somebody added after ours stay. */
static void
fill_slot(TupleTableSlot *slot, const SyncState *row)
{
	TupleDesc	tupdesc = slot->tts_tupleDescriptor;

	ExecClearTuple(slot);
	if (tupdesc->natts > Natts_sync_state)
		heap_deform_tuple(row->tuple, tupdesc, slot->tts_values, slot->tts_isnull);
	syncstate_state_to_datums(row, slot->tts_values, slot->tts_isnull);
	ExecStoreVirtualTuple(slot);
	ItemPointerSetInvalid(&slot->tts_tid);
}

/* The row in a tuple as a composite value, in the caller's outer context. */
Datum
syncstate_row_datum(HeapTuple tuple)
{
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(syncstate_store_ids()->state_rowtype, -1);
	Datum		result = heap_copy_tuple_as_datum(tuple, tupdesc);

	ReleaseTupleDesc(tupdesc);
	return SPI_datumTransfer(result, false, -1);
}
