/*-------------------------------------------------------------------------
 *
 * policy.c
 *		Built-in defaults, effective policies, and the arithmetic of time
 *
 * Everything here that computes takes the time as an argument.  Durations are
 * microseconds in int64; a day of an interval is 24 hours, whatever the time
 * zone does.  Durations are at most MAX_DURATION, so that no sum of a few of
 * them and a timestamp of our times overflows.
 *
 * The effective policies of all sources are kept in one array per session, in
 * the order of the enum's labels, with what sync_budget has learned.  It is
 * thrown away whenever one of the two tables or the enum changes: a trigger on
 * each table sends its invalidation, which every session sees at the latest
 * when its next transaction starts.
 *
 * src/policy.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_enum.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "syncstate.h"

/*
 * What a cursor's life is planned by.  A cursor counted from its last full
 * sync is given up somewhere between these two parts of its life, each row at
 * its own, so that accounts connected together do not all need the expensive
 * full sync in one hour; and no interval sleeps past the first of them.
 */
#define TTL_LAST_VISIT		0.80
#define TTL_FULL_SYNC		0.85

/* What was learned of a row's changes loses half of its weight in this time. */
#define HALF_LIFE			(3.0 * SECS_PER_DAY)

/*
 * Changes that one sync can show at most: an import of 500 events is one event
 * and not a rate of 500.
 */
#define MAX_CHANGES			3

/*
 * Changes after which older ones are forgotten, however recent: enough to know
 * a rate by (to 29 %, which costs 2 % of the delay at most), and so few that a
 * busy row which falls silent is noticed in hours instead of days.
 */
#define MAX_MEMORY			12.0

/* Jitter shortens an interval by this part of itself on average. */
#define MEAN_JITTER			0.75

/*
 * How the plan of a budget is corrected: with what time constant, at most by
 * how much in one step, and within which bounds.  The upper bound is close: a
 * budget that was not spent yesterday, because the workers were down, is not
 * there to be spent today.
 */
#define CORRECTION_DAYS		1.0
#define CORRECTION_ROUNDS	4.0
#define CORRECTION_STEP		4.0
#define CORRECTION_MIN		(1.0 / 16)
#define CORRECTION_MAX		2.0

/*
 * How many starts a source that was idle may make at once, as time: 5 % of a
 * minute's.  Any minute then has at most 105 % of its allowance.
 */
#define RATE_BURST			(3 * USECS_PER_SEC)

/* How far ahead of its allowance starts that are never refused may put it. */
#define RATE_DEBT			USECS_PER_MINUTE

/* Defaults of a source nobody has said anything about. */
static const SyncPolicy builtin_policy = {
	.sync_interval = 15 * USECS_PER_MINUTE,
	.lease_time = 10 * USECS_PER_MINUTE,
	.retry_base = 30 * USECS_PER_SEC,
	.retry_cap = USECS_PER_HOUR,
	.rate_limit_wait = 60 * USECS_PER_SEC,
	.max_failures = 30,
	.park_after = 7 * USECS_PER_DAY,
	.token_ttl = 0,
	.token_ttl_from = TTL_FROM_TOKEN,
	.jitter = 0.1,
	.paused_until = NO_TIME,
	.daily_budget = 0,
	.min_interval = USECS_PER_MINUTE,
	.max_interval = USECS_PER_DAY,
	.rate_per_minute = 0,
};

/*
 * Where a provider says how long a cursor lives.  Gmail: history records are
 * kept for at least a week.  People API: sync tokens expire 7 days after the
 * full sync.
 */
static const struct
{
	const char *label;
	int64		token_ttl;
	TokenTtlFrom token_ttl_from;
}			builtin_ttls[] = {
	{"google_gmail", 7 * USECS_PER_DAY, TTL_FROM_TOKEN},
	{"google_contacts", 7 * USECS_PER_DAY, TTL_FROM_FULL},
};

/* The SQL names of TokenTtlFrom. */
static const char *const ttl_words[] = {
	[TTL_FROM_TOKEN] = "token",
	[TTL_FROM_FULL] = "full",
};

/* Between which bounds a plan may set intervals; in seconds. */
typedef struct BudgetLimits
{
	double		shortest;
	double		longest;
	double		part;			/* of an interval that jitter leaves, on average */
} BudgetLimits;

typedef void (*RowFunction) (SyncPolicy *policy, const Datum *values,
							 const bool *nulls);

/* Effective policies, ordered like the enum; NULL = to be loaded. */
static SyncPolicy *policies = NULL;
static int	npolicies = 0;
static MemoryContext policies_context = NULL;
static Oid	policies_rel = InvalidOid;
static Oid	budget_rel = InvalidOid;
static bool policies_valid = false;
static bool callbacks_registered = false;

static void load_policies(void);
static void read_each(Oid relid, SyncPolicy *loaded, int nloaded,
					  RowFunction apply);
static void apply_learned(SyncPolicy *policy, const Datum *values,
						  const bool *nulls);
static void apply_overrides(SyncPolicy *policy, const Datum *values,
							const bool *nulls);
static int	compare_labels(const void *a, const void *b);
static void policy_rel_changed(Datum arg, Oid relid);
static void enum_changed(Datum arg, int cacheid, uint32 hashvalue);
static int64 row_interval(const SyncPolicy *policy, const SyncState *row);
static double planned_interval(const BudgetLimits *limits, double multiplier,
							   const RateBucket *bucket);
static double planned_syncs(const BudgetLimits *limits, const BudgetPlan *plan,
							double multiplier);
static int	compare_doubles(const void *a, const void *b);
static double permit_time(const SyncPolicy *policy);
static TimestampTz arrival_base(const SyncPolicy *policy, TimestampTz arrival,
								TimestampTz now);
static TimestampTz ttl_anchor(const SyncPolicy *policy, const SyncState *row);
static TimestampTz cursor_dies_at(const SyncPolicy *policy, const SyncState *row);
static void check_overrides(Oid source, HeapTupleHeader overrides);
static Datum policy_row(const SyncPolicy *policy);
static Interval *usecs_interval(int64 usecs);

PG_FUNCTION_INFO_V1(syncstate_policy_changed);
PG_FUNCTION_INFO_V1(syncstate_get_sync_policy);
PG_FUNCTION_INFO_V1(syncstate_set_sync_policy);
PG_FUNCTION_INFO_V1(syncstate_pause_sync_source);
PG_FUNCTION_INFO_V1(syncstate_resume_sync_source);

/*
 * syncstate_policy_changed() -> trigger
 *
 * Tells all sessions that policies changed.
 *
 * Errors: 39P01 if not called as a trigger.
 */
Datum
syncstate_policy_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"policy_changed")));
	CacheInvalidateRelcache(trigdata->tg_relation);
	PG_RETURN_POINTER(NULL);
}

/*
 * syncstate_get_sync_policy(source sync_source) -> sync_policy
 *
 * The effective settings of a source: what was overridden, and the built-in
 * defaults for the rest.
 *
 * Errors: 22023 if source is null.
 */
Datum
syncstate_get_sync_policy(PG_FUNCTION_ARGS)
{
	return policy_row(syncstate_policy(syncstate_arg_source(fcinfo, 0)));
}

/*
 * syncstate_set_sync_policy(source sync_source, changes jsonb) -> sync_policy
 *
 * Overrides settings of a source: keys present change, null goes back to the
 * built-in default, keys absent stay; tells the effective settings.
 *
 *	changes	a JSON object; its keys are the columns of sync_policy
 *
 * Errors: 22023 for a bad argument; 22P02, 22007 or 22008 for a malformed value.
 */
Datum
syncstate_set_sync_policy(PG_FUNCTION_ARGS)
{
	static const char *const keys[] = {
		"sync_interval", "lease_time", "retry_base", "retry_cap",
		"rate_limit_wait", "max_failures", "park_after", "token_ttl",
		"token_ttl_from", "jitter", "paused_until", "daily_budget",
		"min_interval", "max_interval", "rate_per_minute",
	};
	Oid			source = syncstate_arg_source(fcinfo, 0);
	Jsonb	   *changes = syncstate_arg_object(fcinfo, 1, "changes");
	Datum		overrides;

	syncstate_check_keys("changes", &changes->root, keys, lengthof(keys));
	SPI_connect();
	overrides = syncstate_store_policy_changes(source, JsonbPGetDatum(changes));
	check_overrides(source, DatumGetHeapTupleHeader(overrides));
	syncstate_store_policy_write(source, overrides);
	SPI_finish();
	return policy_row(syncstate_policy(source));
}

/*
 * syncstate_pause_sync_source(source sync_source, until timestamptz)
 *		-> sync_policy
 *
 * Hands out no row of a source until a time; syncs in flight may finish.
 *
 *	until	'infinity': until resumed
 *
 * Replaces an earlier pause, also a longer one.
 *
 * Errors: 22023 for a bad argument.
 */
Datum
syncstate_pause_sync_source(PG_FUNCTION_ARGS)
{
	Oid			source = syncstate_arg_source(fcinfo, 0);
	TimestampTz until;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("until must not be null"),
				 errhint("Use resume_sync_source() to end a pause.")));
	until = PG_GETARG_TIMESTAMPTZ(1);
	if (!TIMESTAMP_IS_NOEND(until))
		syncstate_check_time("until", until);

	SPI_connect();
	syncstate_store_pause(source, until, false);
	SPI_finish();
	return policy_row(syncstate_policy(source));
}

/*
 * syncstate_resume_sync_source(source sync_source) -> sync_policy
 *
 * Ends the pause of a source; its due rows can be claimed at once.
 *
 * Errors: 22023 if source is null.
 */
Datum
syncstate_resume_sync_source(PG_FUNCTION_ARGS)
{
	Oid			source = syncstate_arg_source(fcinfo, 0);

	SPI_connect();
	syncstate_store_pause(source, NO_TIME, false);
	SPI_finish();
	syncstate_wake_workers(syncstate_policy(source));
	return policy_row(syncstate_policy(source));
}

/* The effective policy of a source; valid until the next SQL is run. */
const SyncPolicy *
syncstate_policy(Oid source)
{
	int			n;
	const SyncPolicy *all = syncstate_policies(&n);

	for (int i = 0; i < n; i++)
	{
		if (all[i].source == source)
			return &all[i];
	}
	elog(ERROR, "unexpected sync source %u", source);
	return NULL;				/* keep compiler quiet */
}

/*
 * All effective policies; valid until the next SQL is run.
 *
 * Asks for invalidations itself: in the middle of a transaction that holds its
 * locks already nobody else would, and a source that was paused meanwhile would
 * go on being handed out.
 */
const SyncPolicy *
syncstate_policies(int *n)
{
	AcceptInvalidationMessages();
	if (!policies_valid || policies_rel != syncstate_store_ids()->policy_rel)
		load_policies();
	*n = npolicies;
	return policies;
}

/*
 * Reads labels and overrides.  The table is read directly, with the newest
 * snapshot and without privileges: what is kept here serves later
 * transactions of this session, under whatever role and isolation level.
 */
static void
load_policies(void)
{
	const StoreIds *ids = syncstate_store_ids();
	CatCList   *labels;
	MemoryContext context;
	SyncPolicy *loaded;
	int			nloaded;

	if (!callbacks_registered)
	{
		CacheRegisterRelcacheCallback(policy_rel_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(ENUMOID, enum_changed, (Datum) 0);
		callbacks_registered = true;
	}

	/*
	 * Set before reading, so that an invalidation that arrives meanwhile is
	 * seen; with an error, "policies_rel" keeps what is there from use.
	 */
	policies_rel = InvalidOid;
	policies_valid = true;

	/* the caller's until all is read, so that an error leaks nothing */
	context = AllocSetContextCreate(CurrentMemoryContext, "syncstate policies",
									ALLOCSET_SMALL_SIZES);

	labels = SearchSysCacheList1(ENUMTYPOIDNAME,
								 ObjectIdGetDatum(ids->source_type));
	nloaded = labels->n_members;
	loaded = MemoryContextAllocZero(context,
									Max(nloaded, 1) * sizeof(SyncPolicy));
	{
		HeapTuple  *members = palloc(Max(nloaded, 1) * sizeof(HeapTuple));

		for (int i = 0; i < nloaded; i++)
			members[i] = &labels->members[i]->tuple;
		qsort(members, nloaded, sizeof(HeapTuple), compare_labels);
		for (int i = 0; i < nloaded; i++)
		{
			Form_pg_enum label = (Form_pg_enum) GETSTRUCT(members[i]);
			const char *name = NameStr(label->enumlabel);

			loaded[i] = builtin_policy;
			loaded[i].source = label->oid;
			loaded[i].label = label->enumlabel;
			loaded[i].label_hash =
				hash_bytes_extended((const unsigned char *) name,
									strlen(name), 0);
			for (size_t j = 0; j < lengthof(builtin_ttls); j++)
			{
				if (strcmp(name, builtin_ttls[j].label) == 0)
				{
					loaded[i].token_ttl = builtin_ttls[j].token_ttl;
					loaded[i].token_ttl_from = builtin_ttls[j].token_ttl_from;
				}
			}
		}
		pfree(members);
	}
	ReleaseCatCacheList(labels);

	read_each(ids->policy_rel, loaded, nloaded, apply_overrides);
	read_each(ids->budget_rel, loaded, nloaded, apply_learned);

	MemoryContextSetParent(context, TopMemoryContext);
	if (policies_context != NULL)
		MemoryContextDelete(policies_context);
	policies_context = context;
	policies = loaded;
	npolicies = nloaded;
	policies_rel = ids->policy_rel;
	budget_rel = ids->budget_rel;
}

/*
 * Applies each row of a table to the policy of its source: the latest committed
 * ones, whatever the transaction's snapshot.
 */
static void
read_each(Oid relid, SyncPolicy *loaded, int nloaded, RowFunction apply)
{
	Relation	rel = table_open(relid, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot, 0,
										  NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum	   *values = palloc(RelationGetDescr(rel)->natts * sizeof(Datum));
		bool	   *nulls = palloc(RelationGetDescr(rel)->natts * sizeof(bool));

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		for (int i = 0; i < nloaded; i++)
		{
			/* the first column of both tables */
			if (loaded[i].source == DatumGetObjectId(values[0]))
				apply(&loaded[i], values, nulls);
		}
		pfree(values);
		pfree(nulls);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
}

/* Adds what a row of sync_budget has learned. */
static void
apply_learned(SyncPolicy *policy, const Datum *values, const bool *nulls)
{
	policy->multiplier =
		DatumGetFloat8(values[Anum_sync_budget_multiplier - 1]);
	policy->mean_rate =
		DatumGetFloat8(values[Anum_sync_budget_mean_rate - 1]);
}

/* Replaces built-in settings by those of a row of sync_policy. */
static void
apply_overrides(SyncPolicy *policy, const Datum *values, const bool *nulls)
{
#define OVERRIDE(field, value) \
	do { \
		Datum		d = values[Anum_sync_policy_##field - 1]; \
		if (!nulls[Anum_sync_policy_##field - 1]) \
			policy->field = (value); \
	} while (0)

	OVERRIDE(sync_interval, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(lease_time, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(retry_base, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(retry_cap, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(rate_limit_wait, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(max_failures, DatumGetInt32(d));
	OVERRIDE(park_after, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(token_ttl, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(token_ttl_from,
			 strcmp(TextDatumGetCString(d), "full") == 0 ?
			 TTL_FROM_FULL : TTL_FROM_TOKEN);
	OVERRIDE(jitter, DatumGetFloat8(d));
	OVERRIDE(paused_until, DatumGetTimestampTz(d));
	OVERRIDE(daily_budget, DatumGetInt32(d));
	OVERRIDE(min_interval, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(max_interval, syncstate_interval_usecs(DatumGetIntervalP(d)));
	OVERRIDE(rate_per_minute, DatumGetInt32(d));
#undef OVERRIDE
}

/* qsort comparator: the enum's order. */
static int
compare_labels(const void *a, const void *b)
{
	float4		x = ((Form_pg_enum) GETSTRUCT(*(const HeapTuple *) a))->enumsortorder;
	float4		y = ((Form_pg_enum) GETSTRUCT(*(const HeapTuple *) b))->enumsortorder;

	return (x > y) - (x < y);
}

/* Only a flag: an invalidation may arrive in the midst of anything. */
static void
policy_rel_changed(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == policies_rel ||
		relid == budget_rel || policies_rel == InvalidOid)
		policies_valid = false;
}

static void
enum_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	policies_valid = false;
}

/*
 * A number in [0, 1) that is the row's own: the same in every database and
 * after each restore, so that schedules spread and stay.
 */
double
syncstate_row_part(const SyncPolicy *policy, const SyncKey *key)
{
	uint64		hash;

	hash = hash_bytes_extended(key->user_id.data, UUID_LEN, policy->label_hash);
	hash = hash_bytes_extended((unsigned char *) VARDATA_ANY(key->resource),
							   VARSIZE_ANY_EXHDR(key->resource), hash);
	return ldexp((double) (hash >> 11), -53);
}

/*
 * An interval in microseconds, at most MAX_DURATION either way.  Months, which
 * only retry_after may have, count 30 days, as in comparisons of intervals.
 */
int64
syncstate_interval_usecs(const Interval *interval)
{
	double		usecs = (double) interval->time +
		((double) interval->day + 30.0 * interval->month) * USECS_PER_DAY;

	if (usecs >= (double) MAX_DURATION)
		return MAX_DURATION;
	if (usecs <= -(double) MAX_DURATION)
		return -MAX_DURATION;
	return (int64) usecs;		/* exact: below 2^53 */
}

/*
 * How long to wait after n failures in a row.
 *
 *	n		failures so far; 1 or more
 *	unit	random draw in [0, 1)
 *
 * Formula: d = min(cap, base * 2^(n-1)); half of d fixed, half of it random
 * ("equal jitter").  Source: "Exponential Backoff And Jitter", AWS Architecture
 * Blog, 2015.
 */
int64
syncstate_backoff(const SyncPolicy *policy, int32 n, double unit)
{
	int64		delay = policy->retry_cap;

	if (n - 1 < 62 && policy->retry_base <= (policy->retry_cap >> (n - 1)))
		delay = policy->retry_base << (n - 1);
	return delay / 2 + (int64) ((delay - delay / 2) * unit);
}

/*
 * When a row that is made now is due: at once, but less a part of a second
 * that is the row's own, so that a bulk insert does not share one due time.
 */
TimestampTz
syncstate_first_due(const SyncPolicy *policy, const SyncKey *key,
					TimestampTz now)
{
	return now - (int64) (syncstate_row_part(policy, key) * USECS_PER_SEC);
}

/*
 * When a row is due again after a completion.
 *
 * The row's interval, counted from start to start, and shortened by between
 * half and the whole of jitter: always a little shorter, never longer, so that
 * a cron of the same interval finds the row due at every tick.  Not before a
 * tenth of the interval has passed, and not after the last visit that the
 * cursor's life allows.
 */
TimestampTz
syncstate_next_due(const SyncPolicy *policy, const SyncState *row,
				   TimestampTz now)
{
	double		part = syncstate_row_part(policy, &row->key);
	int64		interval = row_interval(policy, row);
	TimestampTz earliest = now + interval / 10;
	TimestampTz start = row->last_sync_at != NO_TIME ?
		Min(row->last_sync_at, now) : now;
	TimestampTz due = start + interval -
		(int64) (interval * policy->jitter * (0.5 + 0.5 * part));
	TimestampTz anchor = ttl_anchor(policy, row);

	if (anchor != NO_TIME)
	{
		TimestampTz visit = anchor + (int64) (policy->token_ttl * TTL_LAST_VISIT);
		TimestampTz death = cursor_dies_at(policy, row);

		/*
		 * Past the last visit, the row's own planned full sync is next.  Past
		 * that too, the cursor is not renewed by what this row does: no use in
		 * hurrying.
		 */
		if (visit <= now)
			visit = death + 1;
		if (visit > now)
		{
			due = Min(due, visit);
			earliest = Min(earliest, visit);
		}
	}
	return Max(due, earliest);
}

/*
 * The interval of a row: its own, else by the budget, else the policy's.
 *
 * Formula: interval = multiplier / sqrt(rate), which makes the mean delay
 * between a change and its discovery, over all changes of all rows, as small
 * as the number of syncs allows.  With rate l of changes and interval I it is
 * l I / 2 per row; minimising the sum for a given sum of 1 / I gives it, by
 * Lagrange.  Source: Sia, Cho, Cho, "Efficient Monitoring Algorithm for Fast
 * News Alerts", TKDE 19(7), 2007; the same falls out of Olston, Pandey,
 * "Recrawl scheduling based on information longevity", WWW 2008, section 2.2,
 * with a divergence that grows linearly.
 */
static int64
row_interval(const SyncPolicy *policy, const SyncState *row)
{
	int64		interval = policy->sync_interval;

	if (row->sync_interval != NULL)
		return syncstate_interval_usecs(row->sync_interval);
	if (policy->daily_budget == 0)
		return interval;
	if (policy->multiplier > 0)
	{
		double		usecs = policy->multiplier /
			sqrt(syncstate_change_rate(policy, row)) * USECS_PER_SEC;

		interval = usecs < (double) MAX_DURATION ? (int64) usecs : MAX_DURATION;
	}
	return Min(Max(interval, policy->min_interval), policy->max_interval);
}

/*
 * Learns from a completed sync how often the row changes.
 *
 * The time since the last completion was watched and showed so many changes.
 * Both decay, and each part of that time by its own age: one look back at a
 * year says little about today.
 *
 * Formula: with I the seconds watched, k = min(items, 3), x = I ln 2 / H:
 * a <- a e^-x + k w, b <- b e^-x + I w, w = (1 - e^-x) / x; H = 3 days.  The
 * rate is Gamma distributed with shape a and rate b (the conjugate prior of a
 * Poisson process).  Source: Gelman et al., "Bayesian Data Analysis", section
 * 2.6; the decay is the discounting of West, Harrison, "Bayesian Forecasting
 * and Dynamic Models", section 2.4.  b stays below H / ln 2; and where a
 * exceeds 12, both shrink to that, which leaves the rate as it is: the last 3
 * days or the last 12 changes count, whichever is less.
 */
void
syncstate_learn(SyncState *row, TimestampTz now)
{
	double		seconds;
	double		x;
	double		decay;
	double		weight;

	/* nobody knows since when a first look looks back */
	if (row->last_successful_sync_at == NO_TIME)
		return;

	/* the clock may have been set back */
	seconds = (double) Max(now - row->last_successful_sync_at, 0) / USECS_PER_SEC;
	x = seconds * M_LN2 / HALF_LIFE;
	decay = exp(-x);
	weight = x > 0 ? -expm1(-x) / x : 1.0;
	row->changes_seen = Max(row->changes_seen, 0.0) * decay +
		Min(row->items_synced, MAX_CHANGES) * weight;
	row->seconds_watched = Max(row->seconds_watched, 0.0) * decay +
		seconds * weight;
	if (row->changes_seen > MAX_MEMORY)
	{
		row->seconds_watched *= MAX_MEMORY / row->changes_seen;
		row->changes_seen = MAX_MEMORY;
	}
}

/*
 * Changes per second of a row, as far as is known.
 *
 * Formula: max(a / b, (a + 1) / (b + 1 / m)), m the mean rate of the source's
 * rows: what was learned, and one change in the time in which the population
 * makes one.  That prior may lift a row about which little is known, but not
 * pull down a busy one, whose few hours of memory are worth less than 1 / m.
 * Less than a second, or than a change, says nothing by itself (and the quotient
 * of a number next to nothing would be an error in SQL).  Keep in sync with
 * store.c.
 */
double
syncstate_change_rate(const SyncPolicy *policy, const SyncState *row)
{
	double		changes = Max(row->changes_seen, 0.0);
	double		seconds = Max(row->seconds_watched, 0.0);
	double		rate = (changes + 1.0) / (seconds + 1.0 / policy->mean_rate);

	return changes >= 1.0 && seconds >= 1.0 ?
		Max(rate, changes / seconds) : rate;
}

/*
 * Finds the multiplier with which the planned syncs meet the target.
 *
 * With multiplier m, a row of rate l is synced each clamp(m / sqrt(l)) seconds.
 * The planned syncs fall as m grows, and between the points where a bucket
 * meets or leaves a clamp they are c + s / m: the points are searched, and
 * between two of them m = s / (target - c) ("water-filling").
 *
 * No solution: as near as the clamps allow.  No rows: a row that comes later
 * shall begin with the policy's interval.
 */
void
syncstate_plan_budget(const SyncPolicy *policy, BudgetPlan *plan)
{
	BudgetLimits limits;
	double	   *points = palloc(Max(2 * plan->nbuckets, 1) * sizeof(double));
	int			npoints = 0;
	double		late = 0;
	double		all = 0;

	limits.part = 1.0 - MEAN_JITTER * policy->jitter;
	limits.longest = (double) policy->max_interval / USECS_PER_SEC;
	if (policy->token_ttl != 0)
		limits.longest = Min(limits.longest,
							 policy->token_ttl * TTL_LAST_VISIT / USECS_PER_SEC);
	limits.shortest = Min((double) policy->min_interval / USECS_PER_SEC,
						  limits.longest);

	for (int i = 0; i < plan->nbuckets; i++)
	{
		points[npoints++] = plan->buckets[i].root * limits.shortest;
		points[npoints++] = plan->buckets[i].root * limits.longest;
	}
	qsort(points, npoints, sizeof(double), compare_doubles);

	if (npoints == 0)
		plan->multiplier = (double) policy->sync_interval / USECS_PER_SEC *
			sqrt(policy->mean_rate > 0 ? policy->mean_rate : 1.0 / SECS_PER_DAY);
	else if (planned_syncs(&limits, plan, points[0]) <= plan->target)
		plan->multiplier = points[0];
	else if (planned_syncs(&limits, plan, points[npoints - 1]) >= plan->target)
		plan->multiplier = points[npoints - 1];
	else
	{
		int			low = 0;	/* here more than the target is planned */
		int			high = npoints - 1;	/* and here less */
		double		free_roots = 0;
		double		middle;
		double		clamped;

		while (high - low > 1)
		{
			int			i = (low + high) / 2;

			if (planned_syncs(&limits, plan, points[i]) > plan->target)
				low = i;
			else
				high = i;
		}
		middle = points[low] + (points[high] - points[low]) / 2;
		for (int i = 0; i < plan->nbuckets; i++)
		{
			double		interval = middle / plan->buckets[i].root;

			if (interval > limits.shortest && interval < limits.longest)
				free_roots += plan->buckets[i].rows * plan->buckets[i].root;
		}
		clamped = planned_syncs(&limits, plan, middle) -
			free_roots / middle * SECS_PER_DAY / limits.part;
		plan->multiplier = free_roots * SECS_PER_DAY / limits.part /
			(plan->target - clamped);
		plan->multiplier = Min(Max(plan->multiplier, points[low]), points[high]);
	}

	plan->planned = planned_syncs(&limits, plan, plan->multiplier);
	plan->least = npoints == 0 ? plan->planned :
		planned_syncs(&limits, plan, points[npoints - 1]);
	plan->at_min = plan->at_max = 0;
	for (int i = 0; i < plan->nbuckets; i++)
	{
		const RateBucket *bucket = &plan->buckets[i];
		double		interval = planned_interval(&limits, plan->multiplier, bucket);

		if (interval <= limits.shortest * (1 + 1e-9))
			plan->at_min += bucket->rows;
		else if (interval >= limits.longest * (1 - 1e-9))
			plan->at_max += bucket->rows;
		late += bucket->late / interval;
		all += bucket->rows / interval;
	}
	plan->late_share = all > 0 ? late / all : 0;
	pfree(points);
}

/* The interval that a plan gives to the rows of a bucket, in seconds. */
static double
planned_interval(const BudgetLimits *limits, double multiplier,
				 const RateBucket *bucket)
{
	return Min(Max(multiplier / bucket->root, limits->shortest),
			   limits->longest);
}

/* The syncs per day of a plan. */
static double
planned_syncs(const BudgetLimits *limits, const BudgetPlan *plan,
			  double multiplier)
{
	double		rate = plan->own_rate;

	for (int i = 0; i < plan->nbuckets; i++)
		rate += plan->buckets[i].rows /
			planned_interval(limits, multiplier, &plan->buckets[i]);
	return rate * SECS_PER_DAY / limits->part;
}

/* qsort comparator */
static int
compare_doubles(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return (x > y) - (x < y);
}

/*
 * By which factor of the budget to plan, after "days" in which so many syncs
 * were started: requests, failures and workers that come late are in no plan.
 *
 *	expected	syncs per day: the budget, or what the bounds of intervals let
 *				come nearest, so that no step is taken where none can follow
 *	plan		how the rows stand under the old correction
 *
 * Formula: d ln(c) / dt = (1 - spent / expected) / T: integral control of the
 * logarithm.  Many short steps make the same of the same number of syncs as
 * one long one, however they are spread over the steps, so that neither noise
 * nor the period of the calls matters; and T is a day, or longer where rows
 * are seen so seldom that a new multiplier takes days to show, so that it does
 * not oscillate (a delay of less than T / e does not even overshoot).
 * Source: Aastroem, Hagglund, "Advanced PID Control", 2006, sections 3.5 and
 * 6.2 (pure delay under integral control; anti-windup).
 *
 * What workers left undone is not made up for.
 */
double
syncstate_correction(double correction, double spent, double expected,
					 double days, const BudgetPlan *plan)
{
	double		rows = 0;
	double		error;
	double		constant = CORRECTION_DAYS;
	double		step;

	if (!(expected * days > 0))
		return correction;
	error = 1.0 - spent / (expected * days);
	if (error > 0)
		error *= 1.0 - plan->late_share;
	for (int i = 0; i < plan->nbuckets; i++)
		rows += plan->buckets[i].rows;
	if (plan->planned > 0)
		constant = Max(constant, CORRECTION_ROUNDS * rows / plan->planned);

	step = -expm1(-days / constant) * error;
	step = Min(Max(step, -log(CORRECTION_STEP)), log(CORRECTION_STEP));
	return Min(Max(correction * exp(step), CORRECTION_MIN), CORRECTION_MAX);
}

/* The time that one start takes of the allowance, in microseconds. */
static double
permit_time(const SyncPolicy *policy)
{
	return (double) USECS_PER_MINUTE / policy->rate_per_minute;
}

/* The time that so many starts take of the allowance. */
int64
syncstate_permits_time(const SyncPolicy *policy, int permits)
{
	return (int64) ceil(permits * permit_time(policy));
}

/*
 * The theoretical arrival time to count from: an idle source has saved up no
 * more than a burst; and a time that no source can have reached is one of a
 * clock that was set back since, and says nothing.
 */
static TimestampTz
arrival_base(const SyncPolicy *policy, TimestampTz arrival, TimestampTz now)
{
	int64		burst = Max(RATE_BURST, syncstate_permits_time(policy, 1));

	if (arrival > now + RATE_DEBT + USECS_PER_SEC)
		return now - burst;
	return Max(arrival, now - burst);
}

/*
 * Takes up to "wanted" permits to start a sync; returns how many there are.
 *
 *	arrival	when the next start would come, were all evenly spread; NO_TIME:
 *			there was none
 *
 * Formula: tat <- max(tat, now - burst) + n T, with T = 60 s / rate and as many
 * n as leave tat <= now.  Source: the generic cell rate algorithm, ITU-T
 * Recommendation I.371, annex A (virtual scheduling).
 */
int
syncstate_permits(const SyncPolicy *policy, TimestampTz *arrival,
				  TimestampTz now, int wanted)
{
	TimestampTz base = arrival_base(policy, *arrival, now);
	double		there = floor((now - base) / permit_time(policy));
	int			permits = there >= wanted ? wanted : Max((int) there, 0);

	*arrival = base + syncstate_permits_time(policy, permits);
	return permits;
}

/* Counts a start that is never refused; its debt has an end. */
void
syncstate_charge(const SyncPolicy *policy, TimestampTz *arrival, TimestampTz now)
{
	*arrival = Min(arrival_base(policy, *arrival, now) +
				   syncstate_permits_time(policy, 1), now + RATE_DEBT);
}

/* From when on there is a permit. */
TimestampTz
syncstate_rate_opens(const SyncPolicy *policy, TimestampTz arrival,
					 TimestampTz now)
{
	return arrival_base(policy, arrival, now) + syncstate_permits_time(policy, 1);
}

/*
 * The end of a rate limit of "wait" from now: never earlier than asked, and
 * later by up to a tenth of it, each row by its own part.
 */
TimestampTz
syncstate_limit_end(const SyncPolicy *policy, const SyncKey *key, int64 wait,
					TimestampTz now)
{
	return now + wait +
		(int64) (syncstate_row_part(policy, key) * (wait / 10));
}

/*
 * Whether a row has a cursor that the provider has forgotten by now, or will
 * before the row is likely to be seen again.
 */
bool
syncstate_cursor_is_dead(const SyncPolicy *policy, const SyncState *row,
						 TimestampTz now)
{
	return now > cursor_dies_at(policy, row);
}

/* The last moment of the life of the row's cursor; DT_NOEND: it lives for ever. */
static TimestampTz
cursor_dies_at(const SyncPolicy *policy, const SyncState *row)
{
	TimestampTz anchor = ttl_anchor(policy, row);
	double		part = 1.0;

	if (anchor == NO_TIME)
		return DT_NOEND;
	if (policy->token_ttl_from == TTL_FROM_FULL)
		part = TTL_FULL_SYNC - (TTL_FULL_SYNC - TTL_LAST_VISIT) *
			syncstate_row_part(policy, &row->key);
	return anchor + (int64) (policy->token_ttl * part);
}

/* What the life of the row's cursor is counted from, or NO_TIME. */
static TimestampTz
ttl_anchor(const SyncPolicy *policy, const SyncState *row)
{
	if (policy->token_ttl == 0 || !syncstate_has_cursor(row))
		return NO_TIME;
	if (policy->token_ttl_from == TTL_FROM_FULL &&
		row->last_full_sync_at != NO_TIME)
		return row->last_full_sync_at;
	return row->token_issued_at;
}

/* Whether a run of failures has reached both limits: parking is called for. */
bool
syncstate_is_hopeless(const SyncPolicy *policy, int64 failures,
					  TimestampTz failing_since, TimestampTz now)
{
	return failures >= policy->max_failures &&
		failing_since != NO_TIME &&
		now - failing_since >= policy->park_after;
}

/*
 * From when on the row's source hands it out, or NO_TIME: at once.
 *
 * After a pause, the rows come back spread over rate_limit_wait, each at its
 * own part of it, so that the first minute of a new quota is not spent in its
 * first second.  A pause until infinity has no end.
 */
TimestampTz
syncstate_source_opens(const SyncPolicy *policy, const SyncKey *key)
{
	if (policy->paused_until == NO_TIME ||
		TIMESTAMP_NOT_FINITE(policy->paused_until))
		return policy->paused_until;
	return policy->paused_until +
		(int64) (syncstate_row_part(policy, key) * policy->rate_limit_wait);
}

/*
 * Pauses a source until a time, unless it is paused for as long already.
 *
 * Many workers hit the same limit at once, each a moment later than the one
 * before.  A moment more is no change; and where another worker is writing a
 * limit just now, nobody waits for its transaction to end, unless the own
 * limit is longer by more than a tenth.
 */
void
syncstate_pause_source(Oid source, TimestampTz until, TimestampTz now)
{
	Relation	rel;
	SnapshotData dirty;
	SysScanDesc scan;
	HeapTuple	tuple;
	TimestampTz paused_until;
	bool		covered = false;

	paused_until = syncstate_policy(source)->paused_until;
	if (paused_until != NO_TIME && paused_until > until - USECS_PER_SEC)
		return;

	InitDirtySnapshot(dirty);
	rel = table_open(syncstate_store_ids()->policy_rel, AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, &dirty, 0, NULL);
	while (!covered && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		value;

		value = heap_getattr(tuple, Anum_sync_policy_source,
							 RelationGetDescr(rel), &isnull);
		if (DatumGetObjectId(value) != source ||
			!TransactionIdIsValid(dirty.xmin))
			continue;
		value = heap_getattr(tuple, Anum_sync_policy_paused_until,
							 RelationGetDescr(rel), &isnull);
		covered = !isnull &&
			DatumGetTimestampTz(value) >= until - (until - now) / 10;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);

	if (!covered)
		syncstate_store_pause(source, until, true);
}

/* Checks what somebody wants to override, together with what stays built in. */
static void
check_overrides(Oid source, HeapTupleHeader overrides)
{
	HeapTupleData tuple;
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(overrides),
												 HeapTupleHeaderGetTypMod(overrides));
	Datum	   *values = palloc(tupdesc->natts * sizeof(Datum));
	bool	   *nulls = palloc(tupdesc->natts * sizeof(bool));
	SyncPolicy	effective = builtin_policy;

	tuple.t_len = HeapTupleHeaderGetDatumLength(overrides);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = overrides;
	heap_deform_tuple(&tuple, tupdesc, values, nulls);
	ReleaseTupleDesc(tupdesc);

#define CHECK_DURATION(field, max) \
	if (!nulls[Anum_sync_policy_##field - 1]) \
		(void) syncstate_check_duration(#field, \
										DatumGetIntervalP(values[Anum_sync_policy_##field - 1]), \
										MIN_DURATION, max)

	CHECK_DURATION(sync_interval, MAX_DURATION);
	CHECK_DURATION(lease_time, MAX_LEASE_TIME);
	CHECK_DURATION(retry_base, MAX_DURATION);
	CHECK_DURATION(retry_cap, MAX_DURATION);
	CHECK_DURATION(rate_limit_wait, MAX_RETRY_AFTER);
	CHECK_DURATION(park_after, MAX_DURATION);
	CHECK_DURATION(token_ttl, MAX_DURATION);
	CHECK_DURATION(min_interval, MAX_DURATION);
	CHECK_DURATION(max_interval, MAX_DURATION);
#undef CHECK_DURATION

	if (!nulls[Anum_sync_policy_token_ttl_from - 1])
		(void) syncstate_check_word("token_ttl_from",
									TextDatumGetCString(values[Anum_sync_policy_token_ttl_from - 1]),
									ttl_words, lengthof(ttl_words));

	apply_overrides(&effective, values, nulls);
	if (effective.max_failures < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_failures must be 1 or more"),
				 errdetail("Got %d.", effective.max_failures)));
	if (!(effective.jitter >= 0 && effective.jitter <= 0.9))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("jitter must be between 0 and 0.9"),
				 errdetail("Got %g.", effective.jitter)));
	if (effective.retry_base > effective.retry_cap)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("retry_base must be at most retry_cap"),
				 errdetail("Got %lld seconds and %lld seconds.",
						   (long long) (effective.retry_base / USECS_PER_SEC),
						   (long long) (effective.retry_cap / USECS_PER_SEC))));
	if (effective.min_interval > effective.max_interval)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("min_interval must be at most max_interval"),
				 errdetail("Got %lld seconds and %lld seconds.",
						   (long long) (effective.min_interval / USECS_PER_SEC),
						   (long long) (effective.max_interval / USECS_PER_SEC))));
	if (!nulls[Anum_sync_policy_daily_budget - 1] &&
		effective.daily_budget < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("daily_budget must be 1 or more"),
				 errdetail("Got %d.", effective.daily_budget),
				 errhint("Null is no budget.")));
	if (!nulls[Anum_sync_policy_rate_per_minute - 1] &&
		(effective.rate_per_minute < 1 ||
		 effective.rate_per_minute > MAX_RATE_PER_MINUTE))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("rate_per_minute must be between 1 and %d",
						MAX_RATE_PER_MINUTE),
				 errdetail("Got %d.", effective.rate_per_minute),
				 errhint("Null is no limit.")));
	if (!nulls[Anum_sync_policy_paused_until - 1] &&
		!TIMESTAMP_IS_NOEND(effective.paused_until))
		syncstate_check_time("paused_until", effective.paused_until);
}

/* An effective policy as a row of sync_policy. */
static Datum
policy_row(const SyncPolicy *policy)
{
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(syncstate_store_ids()->policy_rowtype, -1);
	Datum	   *values = palloc0(tupdesc->natts * sizeof(Datum));
	bool	   *nulls = palloc(tupdesc->natts * sizeof(bool));
	Datum		result;

	memset(nulls, true, tupdesc->natts * sizeof(bool));
#define SET(field, value) \
	do { \
		values[Anum_sync_policy_##field - 1] = (value); \
		nulls[Anum_sync_policy_##field - 1] = false; \
	} while (0)
#define SET_DURATION(field) \
	SET(field, IntervalPGetDatum(usecs_interval(policy->field)))

	SET(source, ObjectIdGetDatum(policy->source));
	SET_DURATION(sync_interval);
	SET_DURATION(lease_time);
	SET_DURATION(retry_base);
	SET_DURATION(retry_cap);
	SET_DURATION(rate_limit_wait);
	SET(max_failures, Int32GetDatum(policy->max_failures));
	SET_DURATION(park_after);
	if (policy->token_ttl != 0)
	{
		SET_DURATION(token_ttl);
		SET(token_ttl_from,
			CStringGetTextDatum(ttl_words[policy->token_ttl_from]));
	}
	SET(jitter, Float8GetDatum(policy->jitter));
	if (policy->paused_until != NO_TIME)
		SET(paused_until, TimestampTzGetDatum(policy->paused_until));
	if (policy->daily_budget != 0)
		SET(daily_budget, Int32GetDatum(policy->daily_budget));
	SET_DURATION(min_interval);
	SET_DURATION(max_interval);
	if (policy->rate_per_minute != 0)
		SET(rate_per_minute, Int32GetDatum(policy->rate_per_minute));
#undef SET
#undef SET_DURATION

	result = HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
	ReleaseTupleDesc(tupdesc);
	return result;
}

/* Microseconds as an interval of days and time. */
static Interval *
usecs_interval(int64 usecs)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->day = usecs / USECS_PER_DAY;
	interval->time = usecs % USECS_PER_DAY;
	return interval;
}
