/*
 * access.c: two ways to the rows of sync_state
 *
 * Plainly, where nothing of the site's has a say before a row is written: the
 * row is read through the primary key or by a walk, changed in memory, and
 * written as a new version if nobody has touched the old one meanwhile.  This
 * costs less than half of what statements do, since no plan is started, and no
 * lock is taken and logged that the new version makes needless.
 *
 * Otherwise by the statements of store.c, which see to triggers, constraints,
 * rules, row security and privileges.
 *
 * The callers are connected to SPI.  What a row points to lives until the next
 * one is read; results live in the caller's outer context.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "rewrite/rowsecurity.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

#include "access.h"
#include "compat.h"
#include "store.h"
#include "syncstate.h"

/*
 * Where this session has put the rows whose syncs it started.  Mostly it is the
 * one that ends them too, and finds them here for a sixth of what the search in
 * the primary key costs.  Keys share these places by their hash, and a row may
 * have moved since, so whatever is found is checked.
 */
#define NUM_PLACES		8192

static ItemPointerData places[NUM_PLACES];

/*
 * Whether nothing of the site's has a say before a row is written: no rule, no
 * trigger before a row or per statement, no constraint.  Our trigger lets our
 * own writes pass, and our CHECK holds for whatever a transition makes of a
 * legal row: neither needs to be asked.
 */
static bool
is_bare(Relation rel)
{
	Oid			guard = syncstate_ids()->guard_function;	/* first: it may rebuild
														 * the rest */
	TriggerDesc *triggers = rel->trigdesc;
	TupleConstr *constraints = RelationGetDescr(rel)->constr;

	if (rel->rd_rules != NULL)
		return false;
	if (triggers != NULL &&
		(triggers->trig_update_before_statement ||
		 triggers->trig_update_after_statement ||
		 triggers->trig_update_old_table || triggers->trig_update_new_table))
		return false;
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		if (TRIGGER_TYPE_MATCHES(trigger->tgtype, TRIGGER_TYPE_ROW,
								 TRIGGER_TYPE_BEFORE, TRIGGER_TYPE_UPDATE) &&
			trigger->tgfoid != guard)
			return false;
	}
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
	{
		if (TupleDescAttr(RelationGetDescr(rel), i)->attgenerated != '\0')
			return false;
	}
	return constraints != NULL && constraints->num_check == 1 &&
		strcmp(constraints->check[0].ccname, "sync_state_is_legal") == 0;
}

/* The columns that we write, as the executor wants them. */
static Bitmapset *
written_columns(void)
{
	Bitmapset  *columns = bms_add_range(NULL,
										Anum_sync_state_status - FirstLowInvalidHeapAttributeNumber,
										Natts_sync_state - FirstLowInvalidHeapAttributeNumber);

	return bms_del_member(columns,
						  Anum_sync_state_created_at - FirstLowInvalidHeapAttributeNumber);
}

/*
 * Whether row security hides no row from the current role.  A worker, who may
 * execute claim_due_syncs(), sees all rows by our policies and by any permissive
 * ones that a site adds.  A restrictive one narrows that, and its expression
 * takes a statement.
 */
static bool
sees_all(Relation rel)
{
	ListCell   *lc;

	if (check_enable_rls(RelationGetRelid(rel), InvalidOid, false) != RLS_ENABLED)
		return true;
	if (!DatumGetBool(DirectFunctionCall2(has_function_privilege_id,
										  ObjectIdGetDatum(syncstate_ids()->claim_function),
										  CStringGetTextDatum("EXECUTE"))))
		return false;
	foreach(lc, rel->rd_rsdesc->policies)
	{
		if (!((RowSecurityPolicy *) lfirst(lc))->permissive)
			return false;
	}
	return true;
}

/*
 * Whether the current role may read, or read and write, the table plainly: the
 * one place that says so.  An auditor's hook wants a statement to look at, so
 * with one there is no plain way; nor is there for a role that lacks a
 * privilege, which the statement tells it.
 */
bool
syncstate_is_plain(Relation rel, AclMode mode)
{
	return is_bare(rel) && ExecutorCheckPerms_hook == NULL &&
		pg_class_aclmask(RelationGetRelid(rel), GetUserId(), mode,
						 ACLMASK_ALL) == mode &&
		sees_all(rel);
}

/* Whether the table has triggers after an update of a row: the site's. */
static bool
fires_after(Relation rel)
{
	return rel->trigdesc != NULL && rel->trigdesc->trig_update_after_row;
}

/*
 * Opens the table to the calls below, until syncstate_rows_close(); after an
 * error nothing needs to be closed.
 */
void
syncstate_rows_open(RowAccess *rows)
{
	MemSet(rows, 0, sizeof(*rows));
	rows->rel = syncstate_open_state(RowExclusiveLock);
	rows->news.context = CurrentMemoryContext;
	rows->plain = syncstate_is_plain(rows->rel, ACL_SELECT | ACL_UPDATE);
	rows->sees_all = rows->plain || sees_all(rows->rel);
	if (rows->plain)
	{
		PreventCommandIfReadOnly("UPDATE");
		PreventCommandIfParallelMode("UPDATE");
		rows->command = GetCurrentCommandId(true);
	}
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

void
syncstate_rows_close(RowAccess *rows)
{
	end_look(rows);
	if (rows->estate != NULL)
	{
		if (fires_after(rows->rel))
			AfterTriggerEndQuery(rows->estate);
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
	syncstate_news_write(&rows->news);
}

/*
 * Looks at the table as it is now, with what this transaction has done to it:
 * what the reads below see, until the next look.
 */
void
syncstate_rows_look(RowAccess *rows)
{
	end_look(rows);
	if (!rows->plain)
		return;
	CommandCounterIncrement();
	rows->command = GetCurrentCommandId(true);
	PushCopiedSnapshot(GetTransactionSnapshot());
	UpdateActiveSnapshotCommandId();
	rows->nblocks = RelationGetNumberOfBlocks(rows->rel);
	rows->slot = table_slot_create(rows->rel, NULL);
}

/* The place that a key shares with a few others. */
static ItemPointer
place_of(const SyncKey *key)
{
	uint32		hash = hash_bytes(key->user_id.data, UUID_LEN);

	hash = hash_combine(hash,
						hash_bytes((unsigned char *) VARDATA_ANY(key->account),
								   VARSIZE_ANY_EXHDR(key->account)));
	hash = hash_combine(hash, hash_uint32(key->source));
	hash = hash_combine(hash,
						hash_bytes((unsigned char *) VARDATA_ANY(key->resource),
								   VARSIZE_ANY_EXHDR(key->resource)));
	return &places[hash % NUM_PLACES];
}

/*
 * Reads the version at a tid, if a snapshot sees it and its page has room for
 * one more.  Return false when the page is full, so that the caller's index scan
 * prunes it: rows at work fill their pages beyond fillfactor, and pruning at each
 * claim would cost half of all the rest of it.
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
	found.account = DatumGetTextPP(slot->tts_values[Anum_sync_state_account - 1]);
	found.source = DatumGetObjectId(slot->tts_values[Anum_sync_state_source - 1]);
	found.resource = DatumGetTextPP(slot->tts_values[Anum_sync_state_resource - 1]);
	return syncstate_same_key(&found, key);
}

/* The conditions by which the primary key finds a key, column by column. */
void
syncstate_key_conditions(const SyncKey *key, ScanKeyData *conditions)
{
	ScanKeyEntryInitialize(&conditions[0], 0, 1, BTEqualStrategyNumber,
						   InvalidOid, InvalidOid, F_UUID_EQ,
						   UUIDPGetDatum(&key->user_id));
	ScanKeyEntryInitialize(&conditions[1], 0, 2, BTEqualStrategyNumber,
						   InvalidOid, C_COLLATION_OID, F_TEXTEQ,
						   PointerGetDatum(key->account));
	ScanKeyEntryInitialize(&conditions[2], 0, 3, BTEqualStrategyNumber,
						   InvalidOid, InvalidOid, F_ENUM_EQ,
						   ObjectIdGetDatum(key->source));
	ScanKeyEntryInitialize(&conditions[3], 0, 4, BTEqualStrategyNumber,
						   InvalidOid, C_COLLATION_OID, F_TEXTEQ,
						   PointerGetDatum(key->resource));
}

/* Puts the row of a key, as the look sees it, into the slot. */
static bool
find_key(RowAccess *rows, const SyncKey *key)
{
	ScanKeyData keys[NUM_KEY_COLUMNS];

	CHECK_FOR_INTERRUPTS();
	if (find_place(rows, key))
		return true;

	if (rows->scan == NULL)
	{
		rows->pkey = index_open(syncstate_ids()->pkey_index, RowExclusiveLock);
		rows->scan = syncstate_index_beginscan(rows->rel, rows->pkey,
											   GetActiveSnapshot(),
											   NUM_KEY_COLUMNS);
	}
	syncstate_key_conditions(key, keys);
	index_rescan(rows->scan, keys, NUM_KEY_COLUMNS, NULL, 0);
	return index_getnext_slot(rows->scan, ForwardScanDirection, rows->slot);
}

/* Reads the row of a key, without a lock; false if there is none to be seen. */
bool
syncstate_rows_read(RowAccess *rows, const SyncKey *key, SyncState *row)
{
	if (!rows->plain)
		return syncstate_store_read(key, row);
	if (!find_key(rows, key))
		return false;
	syncstate_state_from_slot(rows->slot, row);
	return true;
}

/*
 * Locks a tuple: its newest version, since the key of a row never changes,
 * unless the transaction keeps its snapshot.
 */
static TM_Result
lock_tuple(RowAccess *rows, ItemPointer tid, Snapshot snapshot,
		   TupleTableSlot *slot, LockWaitPolicy wait)
{
	int			flags = TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS;
	ItemPointerData newest = *tid;
	TM_FailureData tmfd;
	TM_Result	result;

	if (!IsolationUsesXactSnapshot())
		flags |= TUPLE_LOCK_FLAG_FIND_LAST_VERSION;
	result = table_tuple_lock(rows->rel, &newest, snapshot, slot, rows->command,
							  LockTupleNoKeyExclusive, wait, flags, &tmfd);

	/* statements of others may be run before it is written: no pin for so long */
	if (result == TM_Ok)
		ExecMaterializeSlot(slot);
	return result;
}

/*
 * Locks and reads the row of a key, waiting for others that have it locked;
 * false if there is none to be seen.  Callers that lock several rows do it in
 * the order of the primary key, so that no two of them deadlock.
 */
bool
syncstate_rows_lock(RowAccess *rows, const SyncKey *key, SyncState *row)
{
	TM_Result	result;

	if (!rows->plain)
		return syncstate_store_lock(key, row);
	if (!find_key(rows, key))
		return false;
	result = lock_tuple(rows, &rows->slot->tts_tid, GetActiveSnapshot(),
						rows->slot, LockWaitBlock);
	if (result == TM_Ok)
	{
		syncstate_state_from_slot(rows->slot, row);
		return true;
	}
	if (IsolationUsesXactSnapshot() &&
		(result == TM_Updated || result == TM_Deleted))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent %s",
						result == TM_Updated ? "update" : "delete")));
	if (result != TM_Deleted)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("sync state was changed by an operation that this call triggered"),
				 errdetail_internal("The row could not be locked: result %d.",
									result)));
	return false;
}

/*
 * Names the row of a call in the detail of an error, in the words that the
 * server has for keys.  A caller of many has only the error to tell by which of
 * them it was.
 */
const char *
syncstate_key_detail(const SyncKey *key)
{
#define TEXT_OF_UUID(field) \
	DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&(field))))
#define TEXT_OF_SOURCE(field) \
	DatumGetCString(DirectFunctionCall1(enum_out, ObjectIdGetDatum(field)))
#define TEXT_OF_NAME(field)		text_to_cstring(field)

#define COMMA_NAME(name, kind, writer) ", " #name
#define COMMA_VALUE(name, kind, writer) \
	appendStringInfo(&values, ", %s", TEXT_OF_##kind(key->name));

	const char *names = SYNC_KEY_COLUMNS(COMMA_NAME);
	StringInfoData values;

	initStringInfo(&values);
	SYNC_KEY_COLUMNS(COMMA_VALUE)
	return psprintf("Key (%s)=(%s).", names + strlen(", "),
					values.data + strlen(", "));
}

/*
 * The same words for a row that is not there and one that is not shown.  The
 * detail has what the caller gave, and nothing of the row.
 */
void
syncstate_no_such_row(const SyncKey *key)
{
	ereport(ERROR,
			(errcode(ERRCODE_NO_SUCH_ROW),
			 errmsg("sync state does not exist or is not visible"),
			 errdetail("%s", syncstate_key_detail(key))));
}

/* Makes the row of a key, under the limit of its quota domain. */
static void
make_row(const SyncKey *key)
{
	Oid			source = key->source;
	SyncAccount domain = {
		.user_id = key->user_id,
		.account = key->account,
		.sources = &source,
		.nsources = 1,
	};

	(void) syncstate_store_make(key, syncstate_store_limit(&domain));
}

/* Locks and reads the row of a key, and makes it where that is asked for. */
void
syncstate_rows_lock_or_make(RowAccess *rows, const SyncKey *key, bool make,
							SyncState *row)
{
	for (int try = 0; try < MAX_TRIES; try++)
	{
		syncstate_rows_look(rows);
		if (syncstate_rows_lock(rows, key, row))
			return;
		if (!make)
			break;
		make_row(key);
	}
	syncstate_no_such_row(key);
}

/*
 * Whether a version has a successor that the transaction, which keeps its
 * snapshot, must not see: an UPDATE of it would fail to serialize.
 */
static bool
is_outdated(RowAccess *rows, ItemPointerData tid, TupleTableSlot *slot)
{
	bool		is_newest;

	if (!IsolationUsesXactSnapshot())
		return false;
	is_newest = table_tuple_fetch_row_version(rows->rel, &tid, SnapshotSelf, slot);
	ExecClearTuple(slot);
	return !is_newest;
}

/*
 * Locks and reads the row whose version a snapshot sees at tid, unless somebody
 * else has locked it, or row security hides it.  The slot is for the row.
 */
bool
syncstate_rows_lock_version(RowAccess *rows, ItemPointerData tid,
							Snapshot snapshot, TupleTableSlot *slot,
							SyncState *row)
{
	if (!rows->plain)
		return !is_outdated(rows, tid, slot) &&
			syncstate_store_lock_version(&tid, row);
	if (lock_tuple(rows, &tid, snapshot, slot, LockWaitSkip) != TM_Ok)
		return false;
	syncstate_state_from_slot(slot, row);
	return true;
}

/*
 * Gets the slot for a new row ready, with the row in it; columns that somebody
 * added after ours stay.  Returns false if a column would be null that the site
 * has made NOT NULL, for a statement to refuse.
 */
static bool
begin_writing(RowAccess *rows, const SyncState *row)
{
	TupleTableSlot *slot;
	TupleDesc	tupdesc = RelationGetDescr(rows->rel);

	if (rows->new == NULL)
	{
		CheckCmdReplicaIdentity(rows->rel, CMD_UPDATE);
		rows->new = table_slot_create(rows->rel, NULL);
	}
	slot = rows->new;

	ExecClearTuple(slot);
	if (tupdesc->natts > Natts_sync_state)
		heap_deform_tuple(row->tuple, tupdesc, slot->tts_values, slot->tts_isnull);
	syncstate_state_to_datums(row, slot->tts_values, slot->tts_isnull);
	ExecStoreVirtualTuple(slot);
	ItemPointerSetInvalid(&slot->tts_tid);
	for (int i = 0; i < Natts_sync_state; i++)
	{
		if (slot->tts_isnull[i] && TupleDescAttr(tupdesc, i)->attnotnull)
			return false;
	}
	return true;
}

/*
 * Makes what the executor's functions need around them, as the apply worker of
 * logical replication does.  A change that is HOT, as claims and heartbeats are,
 * needs none of it.
 */
static void
begin_executing(RowAccess *rows)
{
	if (rows->estate == NULL)
	{
		EState	   *estate = CreateExecutorState();
		ResultRelInfo *target = makeNode(ResultRelInfo);

		/* triggers may be for certain columns: we may have changed any of ours */
		syncstate_init_range_table(estate, RelationGetRelid(rows->rel),
								   written_columns());
		InitResultRelInfo(target, rows->rel, 1, NULL, 0);
		estate->es_opened_result_relations =
			lappend(estate->es_opened_result_relations, target);
		ExecOpenIndices(target, false);
		if (fires_after(rows->rel))
			AfterTriggerBeginQuery();
		rows->estate = estate;
		rows->target = target;
	}
	ResetPerTupleExprContext(rows->estate);

	/* the look may be another one than last time */
	rows->estate->es_snapshot = GetActiveSnapshot();
	rows->estate->es_output_cid = rows->command;
}

/*
 * Writes what is in the slot for a new row, and index entries unless the change
 * is HOT.
 *
 * Without waiting, heap_update() says TM_BeingModified where somebody is at the
 * row.  It is documented as having no such caller, and stops a server that is
 * built with assertions: there the row is locked first.
 */
static TM_Result
update_tuple(RowAccess *rows, const SyncState *row, bool wait)
{
	ItemPointerData tid = row->ctid;
	IndexesToUpdate indexes;
	TM_Result	result;
	List	   *recheck = NIL;

#ifdef USE_ASSERT_CHECKING
	if (!wait)
	{
		TupleTableSlot *locked = table_slot_create(rows->rel, NULL);
		TM_FailureData tmfd;

		result = table_tuple_lock(rows->rel, &tid, GetActiveSnapshot(), locked,
								  rows->command, LockTupleNoKeyExclusive,
								  LockWaitSkip, 0, &tmfd);
		ExecDropSingleTupleTableSlot(locked);
		if (result != TM_Ok)
			return result;
		tid = row->ctid;
		wait = true;
	}
	begin_executing(rows);
	ExecConstraints(rows->target, rows->new, rows->estate);
#endif
	result = syncstate_table_tuple_update(rows->rel, &tid, rows->new,
										  rows->command, GetActiveSnapshot(),
										  wait, &indexes);
	if (result != TM_Ok)
		return result;
	if (row->status == SYNC_SYNCING)
		*place_of(&row->key) = rows->new->tts_tid;
	if (indexes != INDEXES_NONE)
	{
		begin_executing(rows);
		recheck = syncstate_insert_index_tuples(rows->target, rows->new,
												rows->estate, indexes);
	}
	if (fires_after(rows->rel))
	{
		begin_executing(rows);
		ExecARUpdateTriggers(rows->estate, rows->target, NULL, NULL, &tid, NULL,
							 rows->new, recheck, NULL, false);
	}
	return TM_Ok;
}

static HeapTuple
written_tuple(RowAccess *rows)
{
	return SPI_copytuple(ExecFetchSlotHeapTuple(rows->new, true, NULL));
}

/*
 * Writes a row that was read but not locked, if nobody has changed or locked it
 * since: one visit to the row instead of two, and one record of WAL.
 *
 * Returns true, and the row as it is now in the caller's outer context.  Returns
 * false without having waited if somebody has changed the row, or if rows are
 * written by statements: then lock it, look at it again, and write that.
 */
bool
syncstate_rows_try(RowAccess *rows, const SyncState *row, HeapTuple *result)
{
	bool		done;

	if (!rows->plain || !begin_writing(rows, row))
		return false;
	Assert(row->tuple != NULL);
	done = update_tuple(rows, row, false) == TM_Ok;
	if (done)
	{
		*result = written_tuple(rows);
		syncstate_news_row(&rows->news, row);
	}
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
	HeapTuple	result;
	TM_Result	done;

	if (!rows->plain || !begin_writing(rows, row))
	{
		result = syncstate_store_write(row);
		if (result != NULL)
			syncstate_news_row(&rows->news, row);
		return result;
	}

	done = update_tuple(rows, row, true);
	if (done != TM_Ok)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("sync state was changed by an operation that this call triggered"),
				 errdetail_internal("The row could not be written: result %d.",
									done)));
	result = written_tuple(rows);
	syncstate_news_row(&rows->news, row);
	ExecClearTuple(rows->new);
	return result;
}

/* The row in a tuple as a composite value, in the caller's outer context. */
Datum
syncstate_row_datum(HeapTuple tuple)
{
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(syncstate_ids()->state_rowtype, -1);
	Datum		result = heap_copy_tuple_as_datum(tuple, tupdesc);

	ReleaseTupleDesc(tupdesc);
	return SPI_datumTransfer(result, false, -1);
}
