/*-------------------------------------------------------------------------
 *
 * syncstate.h
 *		Types and entry points shared by the files of syncstate
 *
 * src/syncstate.h
 *
 *-------------------------------------------------------------------------
 */
#ifndef SYNCSTATE_H
#define SYNCSTATE_H

#include "access/genam.h"
#include "access/htup.h"
#include "access/tableam.h"
#include "access/tupdesc.h"
#include "datatype/timestamp.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "nodes/execnodes.h"
#include "nodes/lockoptions.h"
#include "nodes/pg_list.h"
#include "storage/itemptr.h"
#include "utils/jsonb.h"
#include "utils/relcache.h"
#include "utils/uuid.h"

#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#else
/* 18 counts index searches for EXPLAIN; nobody explains our scans */
#define index_beginscan(heap, index, snapshot, nkeys, norderbys) \
	(index_beginscan)(heap, index, snapshot, NULL, nkeys, norderbys)
#endif

/* What PostgREST turns into HTTP 404 and 409; documented in doc/syncstate.md. */
#define ERRCODE_NO_SUCH_ROW		MAKE_SQLSTATE('P','T','4','0','4')
#define ERRCODE_LEASE_LOST		MAKE_SQLSTATE('P','T','4','0','9')

/*
 * How often to make a row and lock it, while somebody else deletes it each time
 * in between, before giving up.
 */
#define MAX_TRIES				100

/* Limits */
#define MAX_RESOURCE_BYTES		1024
#define MAX_TOKEN_BYTES			65536
#define MAX_ERROR_BYTES			8192
#define MAX_BATCH_ROWS			10000
#define MIN_DURATION			USECS_PER_SEC
#define MAX_DURATION			(INT64CONST(36500) * USECS_PER_DAY)
#define MAX_LEASE_TIME			USECS_PER_DAY
#define MAX_HISTORY_ID			"18446744073709551615"
#define MAX_RETRY_AFTER			(30 * USECS_PER_DAY)
#define MAX_RATE_PER_MINUTE		1000000
#define MAX_AMOUNT				1e12

/*
 * Times of the years 1 to 9999: sums of them and our durations are timestamps
 * that every client and every dump can read.
 */
#define MIN_TIME				(-INT64CONST(63082281600) * USECS_PER_SEC)
#define MAX_TIME				(INT64CONST(252455616000) * USECS_PER_SEC)
#define IS_LEGAL_TIME(t)		((t) >= MIN_TIME && (t) < MAX_TIME)

/*
 * The largest fencing number that an UPDATE may write is what JSON clients can
 * read.  An INSERT may be of a restore: whatever counting on from there reaches
 * must be welcome.  Neither comes near an overflow by counting.
 */
#define MAX_UPDATED_LEASE		(INT64CONST(1) << 53)
#define MAX_INSERTED_LEASE		(INT64CONST(1) << 62)

/*
 * "No time" in a TimestampTz, "no number" in a count or an amount.  None can
 * be mistaken for a value: the table's CHECK keeps infinite times and negative
 * numbers out.
 */
#define NO_TIME					DT_NOBEGIN
#define NO_COUNT				(-1)
#define NO_AMOUNT				(-1.0)

/* Columns of sync_state, in the order of the install script. */
enum
{
	Anum_sync_state_user_id = 1,
	Anum_sync_state_source,
	Anum_sync_state_resource,
	Anum_sync_state_status,
	Anum_sync_state_sync_token,
	Anum_sync_state_history_id,
	Anum_sync_state_updated_min,
	Anum_sync_state_token_issued_at,
	Anum_sync_state_last_full_sync_at,
	Anum_sync_state_due_at,
	Anum_sync_state_requested_at,
	Anum_sync_state_parked_reason,
	Anum_sync_state_sync_interval,
	Anum_sync_state_lease,
	Anum_sync_state_lease_expires_at,
	Anum_sync_state_last_sync_at,
	Anum_sync_state_last_successful_sync_at,
	Anum_sync_state_items_synced,
	Anum_sync_state_page_token,
	Anum_sync_state_progress_done,
	Anum_sync_state_progress_total,
	Anum_sync_state_failures,
	Anum_sync_state_token_losses,
	Anum_sync_state_error_message,
	Anum_sync_state_created_at,
	Anum_sync_state_updated_at,
	Anum_sync_state_failing_since,
	Anum_sync_state_changes_seen,
	Anum_sync_state_seconds_watched,
	Natts_sync_state = Anum_sync_state_seconds_watched,
};

/* Columns of sync_policy, in the order of the install script. */
enum
{
	Anum_sync_policy_source = 1,
	Anum_sync_policy_sync_interval,
	Anum_sync_policy_lease_time,
	Anum_sync_policy_retry_base,
	Anum_sync_policy_retry_cap,
	Anum_sync_policy_rate_limit_wait,
	Anum_sync_policy_max_failures,
	Anum_sync_policy_park_after,
	Anum_sync_policy_token_ttl,
	Anum_sync_policy_token_ttl_from,
	Anum_sync_policy_jitter,
	Anum_sync_policy_paused_until,
	Anum_sync_policy_daily_budget,
	Anum_sync_policy_min_interval,
	Anum_sync_policy_max_interval,
	Anum_sync_policy_rate_per_minute,
	Natts_sync_policy = Anum_sync_policy_rate_per_minute,
};

/* Columns of sync_budget, in the order of the install script. */
enum
{
	Anum_sync_budget_source = 1,
	Anum_sync_budget_multiplier,
	Anum_sync_budget_mean_rate,
	Anum_sync_budget_correction,
	Anum_sync_budget_expected,
	Anum_sync_budget_rebalanced_at,
	Anum_sync_budget_starts,
	Anum_sync_budget_rows,
	Natts_sync_budget = Anum_sync_budget_rows,
};

/* Labels of the enum sync_status; the OIDs are looked up by name. */
typedef enum SyncStatus
{
	SYNC_IDLE,
	SYNC_SYNCING,
	SYNC_ERROR,
	SYNC_RATE_LIMITED,
	NUM_STATUSES,
} SyncStatus;

/* What names a row. */
typedef struct SyncKey
{
	pg_uuid_t	user_id;
	Oid			source;			/* label of enum sync_source */
	text	   *resource;
} SyncKey;

/*
 * A row of sync_state.  Pointers belong to whatever the row was read from;
 * a null column is NULL, NO_TIME or NO_COUNT.
 */
typedef struct SyncState
{
	/* the version that was read; not columns */
	ItemPointerData ctid;
	HeapTuple	tuple;			/* NULL: was read by a statement, see row.c */

	SyncKey		key;
	SyncStatus	status;
	text	   *sync_token;
	text	   *history_id;
	TimestampTz updated_min;
	TimestampTz token_issued_at;
	TimestampTz last_full_sync_at;
	TimestampTz due_at;			/* NO_TIME: parked */
	TimestampTz requested_at;
	text	   *parked_reason;
	Interval   *sync_interval;
	int64		lease;
	TimestampTz lease_expires_at;
	TimestampTz last_sync_at;
	TimestampTz last_successful_sync_at;
	int64		items_synced;
	text	   *page_token;
	int64		progress_done;
	int64		progress_total;
	int32		failures;
	int32		token_losses;
	text	   *error_message;
	TimestampTz created_at;
	TimestampTz updated_at;
	TimestampTz failing_since;
	double		changes_seen;	/* decayed; NO_AMOUNT: nothing learned yet */
	double		seconds_watched;	/* decayed likewise */
} SyncState;

/* A way to the rows of sync_state; the fields are row.c's own. */
typedef struct RowAccess
{
	Relation	rel;
	bool		direct;			/* without statements */
	bool		plain;			/* and without the site's having a say */

	/* one look at the table */
	BlockNumber nblocks;
	TupleTableSlot *slot;
	Relation	pkey;			/* opened with the scan, when it is needed */
	IndexScanDesc scan;

	/* what writing takes, from the first write on */
	TupleTableSlot *new;
	EState	   *estate;			/* NULL: no executor was needed so far */
	ResultRelInfo *target;
	EPQState	epqstate;
	TupleTableSlot *old;
} RowAccess;

/* What token_ttl is counted from. */
typedef enum TokenTtlFrom
{
	TTL_FROM_TOKEN,				/* token_issued_at */
	TTL_FROM_FULL,				/* last_full_sync_at */
} TokenTtlFrom;

/* The effective policy of a source; durations in microseconds. */
typedef struct SyncPolicy
{
	Oid			source;
	NameData	label;
	uint64		label_hash;		/* so that a user's sources differ in phase */
	int64		sync_interval;
	int64		lease_time;
	int64		retry_base;
	int64		retry_cap;
	int64		rate_limit_wait;
	int32		max_failures;
	int64		park_after;
	int64		token_ttl;		/* 0: cursors live for ever */
	TokenTtlFrom token_ttl_from;
	double		jitter;
	TimestampTz paused_until;	/* NO_TIME: not paused */
	int32		daily_budget;	/* syncs per day; 0: off */
	int64		min_interval;	/* of a row that the budget decides about */
	int64		max_interval;
	int32		rate_per_minute;	/* 0: off */
	double		multiplier;		/* learned; 0: never rebalanced */
	double		mean_rate;		/* learned: changes per second of a row */
} SyncPolicy;

/* The rows of a source whose rates are about the same, for a plan. */
typedef struct RateBucket
{
	double		root;			/* mean square root of their rates, per second */
	double		rows;
	double		late;			/* those of them long overdue */
} RateBucket;

/* What a budget is to be divided among, and how it came out. */
typedef struct BudgetPlan
{
	double		target;			/* syncs per day */
	double		own_rate;		/* syncs per second of rows with their own interval */
	RateBucket *buckets;
	int			nbuckets;
	double		multiplier;		/* out: interval in seconds = multiplier / root */
	double		planned;		/* out: syncs per day, those of own intervals too */
	double		least;			/* out: the same with all at the longest interval */
	double		at_min;			/* out: rows at the shortest interval */
	double		at_max;			/* out: rows at the longest */
	double		late_share;		/* out: part of the planned syncs that is late */
} BudgetPlan;

/* OIDs of our objects, valid until the next invalidation. */
typedef struct StoreIds
{
	Oid			state_rel;
	Oid			state_rowtype;
	Oid			pkey_index;
	Oid			due_index;
	Oid			requested_index;
	Oid			claim_function;
	Oid			guard_function;
	Oid			policy_rel;
	Oid			policy_rowtype;
	Oid			budget_rel;
	Oid			source_type;
	Oid			status_type;
	Oid			status_labels[NUM_STATUSES];
} StoreIds;

/* syncstate.c */
extern TimestampTz syncstate_now(void);
extern bool syncstate_clock_is_set(void);

/* store.c */
extern const StoreIds *syncstate_store_ids(void);
extern uint64 syncstate_store_generation(void);
extern bool syncstate_store_is_writing(void);
extern bool syncstate_store_set_writing(bool ours);
extern bool syncstate_store_lock(const SyncKey *key, SyncState *row);
extern void syncstate_store_make(const SyncKey *key);
extern HeapTuple syncstate_store_write(const SyncState *row);
extern bool syncstate_store_delete(const SyncKey *key);
extern bool syncstate_store_request(const SyncKey *key, TimestampTz now,
									bool *comes);
extern void syncstate_store_change(const SyncState *row, Datum changes,
								   SyncState *changed);
extern Datum syncstate_store_policy_changes(Oid source, Datum changes);
extern void syncstate_store_policy_write(Oid source, Datum policy);
extern void syncstate_store_pause(Oid source, TimestampTz until, bool extend);
extern bool syncstate_store_budget(Oid source, Datum *values, bool *nulls);
extern void syncstate_store_budget_write(const Datum *values);
extern void syncstate_store_budget_drop(Oid source);
extern uint64 syncstate_store_rates(Oid source, double mean_rate,
									TimestampTz since, TimestampTz late);

/* row.c */
extern void syncstate_state_from_datums(const Datum *values, const bool *nulls,
										SyncState *row);
extern void syncstate_state_to_datums(const SyncState *row,
									  Datum *values, bool *nulls);
extern void syncstate_row_from_slot(TupleTableSlot *slot, SyncState *row);
extern Datum syncstate_row_datum(HeapTuple tuple);
extern void syncstate_rows_open(RowAccess *rows);
extern void syncstate_rows_close(RowAccess *rows);
extern void syncstate_rows_look(RowAccess *rows);
extern bool syncstate_fetch_version(Relation rel, ItemPointerData tid,
									Snapshot snapshot, TupleTableSlot *slot);
extern bool syncstate_rows_read(RowAccess *rows, const SyncKey *key,
								SyncState *row);
extern bool syncstate_rows_lock(RowAccess *rows, const SyncKey *key,
								SyncState *row);
extern TM_Result syncstate_rows_lock_tid(RowAccess *rows, ItemPointerData tid,
										 Snapshot snapshot,
										 TupleTableSlot *slot,
										 LockWaitPolicy wait, SyncState *row);
extern TM_Result syncstate_rows_try(RowAccess *rows, const SyncState *row,
									HeapTuple *result);
extern HeapTuple syncstate_rows_write(RowAccess *rows, const SyncState *row);

/* policy.c */
extern const SyncPolicy *syncstate_policy(Oid source);
extern const SyncPolicy *syncstate_policies(int *npolicies);
extern double syncstate_row_part(const SyncPolicy *policy, const SyncKey *key);
extern int64 syncstate_interval_usecs(const Interval *interval);
extern int64 syncstate_backoff(const SyncPolicy *policy, int32 n, double unit);
extern TimestampTz syncstate_first_due(const SyncPolicy *policy,
									   const SyncKey *key, TimestampTz now);
extern TimestampTz syncstate_next_due(const SyncPolicy *policy,
									  const SyncState *row, TimestampTz now);
extern TimestampTz syncstate_limit_end(const SyncPolicy *policy,
									   const SyncKey *key, int64 wait,
									   TimestampTz now);
extern bool syncstate_cursor_is_dead(const SyncPolicy *policy,
									 const SyncState *row, TimestampTz now);
extern bool syncstate_is_hopeless(const SyncPolicy *policy, int64 failures,
								  TimestampTz failing_since, TimestampTz now);
extern TimestampTz syncstate_source_opens(const SyncPolicy *policy,
										  const SyncKey *key);

extern void syncstate_pause_source(Oid source, TimestampTz until,
								   TimestampTz now);
extern void syncstate_learn(SyncState *row, TimestampTz now);
extern double syncstate_change_rate(const SyncPolicy *policy,
									const SyncState *row);
extern void syncstate_plan_budget(const SyncPolicy *policy, BudgetPlan *plan);
extern double syncstate_correction(double correction, double spent,
								   double expected, double days,
								   const BudgetPlan *plan);
extern int	syncstate_permits(const SyncPolicy *policy, TimestampTz *arrival,
							  TimestampTz now, int wanted);
extern int64 syncstate_permits_time(const SyncPolicy *policy, int permits);
extern void syncstate_charge(const SyncPolicy *policy, TimestampTz *arrival,
							 TimestampTz now);
extern TimestampTz syncstate_rate_opens(const SyncPolicy *policy,
										TimestampTz arrival, TimestampTz now);

/* rate.c */
extern int	syncstate_rate_draw(const SyncPolicy *policy, int wanted,
								TimestampTz *drawn_at);
extern void syncstate_rate_give_back(const SyncPolicy *policy, int permits,
									 TimestampTz drawn_at);
extern void syncstate_rate_count(const SyncPolicy *policy);
extern TimestampTz syncstate_rate_next(const SyncPolicy *policy,
									   TimestampTz now);

/* lifecycle.c */
extern bool syncstate_is_parked_reason(const text *reason);
extern void syncstate_lock_row(RowAccess *rows, const SyncKey *key, bool make,
							   SyncState *row);
extern Datum syncstate_write_row(RowAccess *rows, const SyncState *row);
extern void syncstate_start(SyncState *row, const SyncPolicy *policy,
							int64 lease_time, TimestampTz now);
extern void syncstate_give_up(SyncState *row, TimestampTz now);
extern void syncstate_wake_workers(const SyncPolicy *policy);
extern bool syncstate_has_cursor(const SyncState *row);
extern void syncstate_drop_cursor(SyncState *row);
extern void syncstate_set_due(SyncState *row, TimestampTz due_at);
pg_noreturn extern void syncstate_no_such_row(void);

/* guard.c */
extern bool syncstate_same_text(const text *a, const text *b);
extern bool syncstate_same_key(const SyncKey *a, const SyncKey *b);
extern void syncstate_guard_update(const SyncState *old, SyncState *row,
								   bool status_written, TimestampTz now);

/* args.c: each names the argument in its error */
extern SyncKey syncstate_arg_key(FunctionCallInfo fcinfo, int user_id,
								 int source, int resource);
extern Oid	syncstate_arg_source(FunctionCallInfo fcinfo, int arg);
extern text *syncstate_arg_text(FunctionCallInfo fcinfo, int arg,
								const char *name, int max_bytes);
extern int	syncstate_arg_word(FunctionCallInfo fcinfo, int arg,
							   const char *name,
							   const char *const *words, int nwords);
extern int32 syncstate_arg_max_rows(FunctionCallInfo fcinfo, int arg,
									bool null_is_all);
extern int64 syncstate_arg_count(FunctionCallInfo fcinfo, int arg,
								 const char *name, bool null_is_none);
extern int64 syncstate_arg_lease(FunctionCallInfo fcinfo, int arg);
extern TimestampTz syncstate_arg_time(FunctionCallInfo fcinfo, int arg,
									  const char *name);
extern int64 syncstate_arg_duration(FunctionCallInfo fcinfo, int arg,
									const char *name, int64 min, int64 max);
extern Jsonb *syncstate_arg_object(FunctionCallInfo fcinfo, int arg,
								   const char *name);
extern void syncstate_check_keys(const char *name, JsonbContainer *object,
								 const char *const *keys, int nkeys);
extern void syncstate_check_size(const char *name, Size bytes, Size max_bytes);
extern void syncstate_check_count(const char *name, int64 count);
extern void syncstate_check_amount(const char *name, double amount);
extern void syncstate_check_time(const char *name, TimestampTz time);
extern bool syncstate_is_duration(const Interval *interval, int64 min, int64 max);
extern int64 syncstate_check_duration(const char *name,
									  const Interval *interval,
									  int64 min, int64 max);
extern int	syncstate_check_word(const char *name, const char *word,
								 const char *const *words, int nwords);
extern text *syncstate_tidy_history_id(text *history_id);
extern bool syncstate_is_history_id(const text *history_id);
extern void syncstate_check_history_id(const char *name,
									   const text *history_id);

#endif							/* SYNCSTATE_H */
