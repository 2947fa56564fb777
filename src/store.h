/* store.h: what is done by statements */
#ifndef SYNCSTATE_STORE_H
#define SYNCSTATE_STORE_H

#include "channel.h"
#include "state.h"
#include "utils/array.h"

/* How often to make a row and lock it, if somebody deletes it each time. */
#define MAX_TRIES		100

/* A row of sync_budget. */
typedef struct SyncBudget
{
	Oid			source;
#define FIELD(name, c_type, sql_type) c_type name;
	SYNC_BUDGET_COLUMNS(FIELD)
#undef FIELD
} SyncBudget;

/* Some sources of an account of a user. */
typedef struct SyncAccount
{
	pg_uuid_t	user_id;
	text	   *account;
	Oid		   *sources;
	int			nsources;
} SyncAccount;

/* A row of sync_event or sync_run that may be too old. */
typedef struct OldRow
{
	ItemPointerData tid;
	TimestampTz at;
} OldRow;

/* A channel that is locked, for which something is to be done. */
typedef struct DueChannel
{
	SyncChannel channel;
	bool		row_is_parked;
	TimestampTz limited_until;	/* its account, by the provider */
} DueChannel;

/* Rows of sync_state. */
extern bool syncstate_store_read(const SyncKey *key, SyncState *row);
extern bool syncstate_store_lock(const SyncKey *key, SyncState *row);
extern bool syncstate_store_lock_version(ItemPointer tid, SyncState *row);
extern bool syncstate_store_sees(ItemPointer tid);
extern bool syncstate_store_make(const SyncKey *key, TimestampTz limited_until);
extern HeapTuple syncstate_store_write(const SyncState *row);
extern bool syncstate_store_is_writing(ItemPointer tid);
extern bool syncstate_store_delete(const SyncKey *key);
extern HeapTuple syncstate_store_take(const SyncKey *key);
extern bool syncstate_store_lock_request(SyncState *row);
extern bool syncstate_store_request(const SyncKey *key, TimestampTz now);
extern void syncstate_store_change(const SyncState *row, Datum changes,
								   SyncState *changed);
extern SyncKey *syncstate_store_parked(Oid source, ArrayType *reasons,
									   int max_rows, int *nkeys);
extern TimestampTz syncstate_store_limit(const SyncAccount *account);
extern SyncKey *syncstate_store_account(const SyncAccount *account, int *nkeys);

/* Rows of sync_policy and sync_budget. */
extern Datum syncstate_store_policy_changes(Oid source, Datum changes);
extern void syncstate_store_policy_write(Oid source, Datum policy);
extern void syncstate_store_pause(Oid source, TimestampTz until, bool extend);
extern void syncstate_store_resync(Oid source, TimestampTz from,
								   Interval *spread);
extern bool syncstate_store_budget(Oid source, SyncBudget *budget);
extern void syncstate_store_budget_write(const SyncBudget *budget);
extern void syncstate_store_budget_drop(Oid source);
extern uint64 syncstate_store_rates(Oid source, double mean_rate,
									TimestampTz since, TimestampTz late,
									TimestampTz push_from, double push_seconds);

/* Rows of sync_event and sync_run. */
extern void syncstate_store_events(Datum *events, int nevents);
extern void syncstate_store_runs(Datum *runs, int nruns);
extern OldRow *syncstate_store_oldest(Oid source, TimestampTz from,
									  int max_rows, int *nrows);
extern void syncstate_store_trim(Oid source, const OldRow *rows, int nrows);
extern HeapTuple *syncstate_store_take_events(int max_rows, int *nevents);

/* Rows of sync_channel. */
extern bool syncstate_store_has_channels(Oid source);
extern int64 syncstate_store_match_channels(const SyncPolicy *policy,
											int max_rows, TimestampTz now);
extern DueChannel *syncstate_store_due_channels(Oid source, int max_rows,
												TimestampTz now, int *nchannels);
extern bool syncstate_store_has_active_channel(const SyncKey *key);
extern bool syncstate_store_channel(const text *channel_id, SyncChannel *channel);
extern bool syncstate_store_lock_channel(const text *channel_id,
										 SyncChannel *channel);
extern bool syncstate_store_lock_leased(const SyncKey *key, int64 lease,
										SyncChannel *channel);
extern HeapTuple syncstate_store_make_channel(const SyncChannel *channel);
extern HeapTuple syncstate_store_write_channel(const SyncChannel *channel);
extern HeapTuple syncstate_store_drop_channel(const SyncChannel *channel);
extern bool syncstate_store_try_channel(SyncChannel *channel);

#endif
