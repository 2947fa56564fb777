/*
 * guard.c: the row trigger: keeps a row legal whichever way it is written
 *
 * Clients that keep their sync state by hand write it like
 * upsert({status: 'syncing', ...}).  What such a write does to the row is what
 * the call would have done: see syncstate_follow_write() in transition.c.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "nodes/bitmapset.h"
#include "utils/rel.h"

#include "guard.h"
#include "news.h"
#include "store.h"
#include "syncstate.h"

PG_FUNCTION_INFO_V1(syncstate_guard);
PG_FUNCTION_INFO_V1(syncstate_record_revoked);

static void
check_lease_number(int64 lease, int64 max)
{
	if (lease > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lease must be at most %lld", (long long) max),
				 errdetail("Got %lld.", (long long) lease)));
}

/* Whether an UPDATE names a column, if only to keep its value. */
static bool
names_column(const TriggerData *trigdata, int column)
{
	return bms_is_member(column - FirstLowInvalidHeapAttributeNumber,
						 trigdata->tg_updatedcols);
}

/* Refuses what no client may write, and lets the rest follow. */
void
syncstate_guard_write(const SyncState *old, SyncState *row,
					  const Written *written)
{
	SyncPolicy	policy = syncstate_policy(old->key.source);

	if (!syncstate_same_key(&row->key, &old->key))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key columns of a sync state cannot be changed"),
				 errdetail("The key is user_id, account, source and resource."),
				 errhint("Delete the row and make another.")));
	if (row->lease > old->lease)
		check_lease_number(row->lease, MAX_UPDATED_LEASE);
	syncstate_follow_write(old, row, written, &policy, syncstate_now());
}

/* Writes what there is to tell of a row, at once. */
static void
write_news(const SyncState *row)
{
	NewsList	news;

	SPI_connect();
	news = (NewsList) {.context = CurrentMemoryContext};
	syncstate_news_row(&news, row);
	syncstate_news_write(&news);
	SPI_finish();
}

/* syncstate_guard() -> trigger: see doc/syncstate.md. */
Datum
syncstate_guard(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	TupleDesc	tupdesc;
	HeapTuple	tuple;
	SyncState	row;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		TRIGGER_FIRED_BY_DELETE(trigdata->tg_event) ||
		RelationGetRelid(trigdata->tg_relation) != syncstate_ids()->state_rel)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be fired BEFORE INSERT OR UPDATE ROW of table \"%s\"",
						"guard", "sync_state")));

	tupdesc = RelationGetDescr(trigdata->tg_relation);
	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
	{
		SyncPolicy	policy;

		tuple = trigdata->tg_trigtuple;
		syncstate_state_from_tuple(tuple, tupdesc, &row);
		check_lease_number(row.lease, MAX_INSERTED_LEASE);
		policy = syncstate_policy(row.key.source);
		syncstate_fill_in(&row, &policy, syncstate_now());
	}
	else
	{
		Written		written = {
			.status = names_column(trigdata, Anum_sync_state_status),
			.items_synced = names_column(trigdata, Anum_sync_state_items_synced),
			.sync_token = names_column(trigdata, Anum_sync_state_sync_token),
			.history_id = names_column(trigdata, Anum_sync_state_history_id),
			.updated_min = names_column(trigdata, Anum_sync_state_updated_min),
		};
		SyncState	old;

		tuple = trigdata->tg_newtuple;
		if (syncstate_store_is_writing(&trigdata->tg_trigtuple->t_self))
			return PointerGetDatum(tuple);
		syncstate_state_from_tuple(trigdata->tg_trigtuple, tupdesc, &old);
		syncstate_state_from_tuple(tuple, tupdesc, &row);
		syncstate_guard_write(&old, &row, &written);
		if (syncstate_has_news(&row))
			write_news(&row);
	}
	return PointerGetDatum(syncstate_state_into_tuple(&row, tuple, tupdesc));
}

/*
 * syncstate_record_revoked() -> trigger: keeps the run that ended with its row, if
 * the policy wants it kept.
 */
Datum
syncstate_record_revoked(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	SyncPolicy	policy;
	SyncState	row;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_AFTER(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		!TRIGGER_FIRED_BY_DELETE(trigdata->tg_event) ||
		RelationGetRelid(trigdata->tg_relation) != syncstate_ids()->state_rel)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be fired AFTER DELETE ROW of table \"%s\"",
						"record_revoked", "sync_state")));

	syncstate_state_from_tuple(trigdata->tg_trigtuple,
							   RelationGetDescr(trigdata->tg_relation), &row);
	policy = syncstate_policy(row.key.source);
	if (policy.keep_runs != KEEP_RUNS_NONE)
	{
		syncstate_tell_run(&row, &row, OUTCOME_REVOKED, NULL, &policy,
						   syncstate_now());
		if (syncstate_has_news(&row))
			write_news(&row);
	}
	return PointerGetDatum(NULL);
}
