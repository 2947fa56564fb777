/*
 * policy.c: the effective settings of sources: built in, overridden, learned
 *
 * The effective policies of all sources are kept in one array per session, in
 * the order of the enum's labels.  It is thrown away whenever sync_policy,
 * sync_budget or the enum changes: a trigger on each table sends its
 * invalidation, which every session sees at the latest when its next
 * transaction starts.  Callers get copies, since any SQL may load it anew.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_enum.h"
#include "commands/async.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "args.h"
#include "catalog.h"
#include "check.h"
#include "policy.h"

/* The settings of a source nobody has said anything about. */
static const SyncPolicy builtin_policy = {
#define BUILTIN(name, kind, least, most, builtin) .name = builtin,
	SYNC_POLICY_SETTINGS(BUILTIN)
#undef BUILTIN
};

/*
 * What the built-in sources have of their own.  Gmail: history records are kept
 * for at least a week.  People API: sync tokens expire 7 days after the full
 * sync.
 */
static const struct
{
	const char *label;
	const char *provider;
	int64		token_ttl;
	TokenTtlFrom token_ttl_from;
}			builtin_sources[] = {
	{"google_calendar", "google", 0, TTL_FROM_TOKEN},
	{"google_tasks", "google", 0, TTL_FROM_TOKEN},
	{"google_gmail", "google", 7 * USECS_PER_DAY, TTL_FROM_TOKEN},
	{"google_contacts", "google", 7 * USECS_PER_DAY, TTL_FROM_FULL},
};

/* The SQL names of TokenTtlFrom. */
static const char *const ttl_words[NUM_TTL_FROM] = {
	[TTL_FROM_TOKEN] = "token",
	[TTL_FROM_FULL] = "full",
};

/* The SQL names of KeepRuns. */
static const char *const keep_runs_words[NUM_KEEP_RUNS] = {
	[KEEP_RUNS_NONE] = "none",
	[KEEP_RUNS_FAILURES] = "failures",
	[KEEP_RUNS_ALL] = "all",
};

typedef void (*RowFunction) (SyncPolicy *policy, const Datum *values,
							 const bool *nulls);

/* Effective policies, ordered like the enum; NULL: to be loaded. */
static SyncPolicy *policies = NULL;
static int	npolicies = 0;
static MemoryContext policies_context = NULL;
static Oid	policies_rel = InvalidOid;
static Oid	budget_rel = InvalidOid;
static bool policies_valid = false;
static bool policies_parallel = false;	/* by the snapshot of a parallel plan */

PG_FUNCTION_INFO_V1(syncstate_policy_changed);
PG_FUNCTION_INFO_V1(syncstate_get_sync_policy);

/* syncstate_policy_changed() -> trigger: tells all sessions. */
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

/* Sets only a flag, since an invalidation may arrive in the middle of anything. */
static void
rel_changed(Datum arg, Oid relid)
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

/* qsort comparator: the enum's order. */
static int
compare_labels(const void *a, const void *b)
{
	float4		x = ((Form_pg_enum) GETSTRUCT(*(const HeapTuple *) a))->enumsortorder;
	float4		y = ((Form_pg_enum) GETSTRUCT(*(const HeapTuple *) b))->enumsortorder;

	return (x > y) - (x < y);
}

/* The built-in policies of all labels, in the order of the enum. */
static SyncPolicy *
builtin_policies(MemoryContext context, int *n)
{
	CatCList   *labels = SearchSysCacheList1(ENUMTYPOIDNAME,
											 ObjectIdGetDatum(syncstate_ids()->source_type));
	HeapTuple  *members = palloc(Max(labels->n_members, 1) * sizeof(HeapTuple));
	SyncPolicy *loaded;

	*n = labels->n_members;
	loaded = MemoryContextAllocZero(context, Max(*n, 1) * sizeof(SyncPolicy));
	for (int i = 0; i < *n; i++)
		members[i] = &labels->members[i]->tuple;
	qsort(members, *n, sizeof(HeapTuple), compare_labels);
	for (int i = 0; i < *n; i++)
	{
		Form_pg_enum label = (Form_pg_enum) GETSTRUCT(members[i]);
		const char *name = NameStr(label->enumlabel);

		loaded[i] = builtin_policy;
		loaded[i].source = label->oid;
		loaded[i].label = label->enumlabel;
		loaded[i].label_hash =
			hash_bytes_extended((const unsigned char *) name, strlen(name), 0);
		loaded[i].provider = label->enumlabel;
		for (size_t j = 0; j < lengthof(builtin_sources); j++)
		{
			if (strcmp(name, builtin_sources[j].label) == 0)
			{
				namestrcpy(&loaded[i].provider, builtin_sources[j].provider);
				loaded[i].token_ttl = builtin_sources[j].token_ttl;
				loaded[i].token_ttl_from = builtin_sources[j].token_ttl_from;
			}
		}
	}
	pfree(members);
	ReleaseCatCacheList(labels);
	return loaded;
}

/*
 * Applies each row of a table to the policy of its source: the latest committed
 * ones, whatever the transaction's snapshot; but a parallel plan knows no other.
 */
static void
read_each(Oid relid, SyncPolicy *loaded, int nloaded, RowFunction apply)
{
	Relation	rel = table_open(relid, AccessShareLock);
	Snapshot	snapshot = RegisterSnapshot(IsInParallelMode() ?
											GetActiveSnapshot() :
											GetLatestSnapshot());
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

static TokenTtlFrom
ttl_from_of(Datum word)
{
	return strcmp(TextDatumGetCString(word), ttl_words[TTL_FROM_FULL]) == 0 ?
		TTL_FROM_FULL : TTL_FROM_TOKEN;
}

static KeepRuns
keep_runs_of(Datum word)
{
	return syncstate_check_word("keep_runs", TextDatumGetCString(word),
								keep_runs_words, NUM_KEEP_RUNS);
}

static NameData
name_of(Datum label)
{
	NameData	name;

	namestrcpy(&name, TextDatumGetCString(label));
	return name;
}

/* Replaces built-in settings by those of a row of sync_policy. */
static void
apply_overrides(SyncPolicy *policy, const Datum *values, const bool *nulls)
{
#define FROM_DURATION(value)		syncstate_interval_usecs(DatumGetIntervalP(value))
#define FROM_DURATION_OR_OFF(value)	FROM_DURATION(value)
#define FROM_COUNT(value)			DatumGetInt32(value)
#define FROM_COUNT_OR_OFF(value)	FROM_COUNT(value)
#define FROM_FRACTION(value)		DatumGetFloat8(value)
#define FROM_TTL_FROM(value)		ttl_from_of(value)
#define FROM_PAUSE(value)			DatumGetTimestampTz(value)
#define FROM_TIME_OR_OFF(value)		FROM_PAUSE(value)
#define FROM_LABEL(value)			name_of(value)
#define FROM_KEEP_RUNS(value)		keep_runs_of(value)

#define OVERRIDE(name, kind, least, most, builtin) \
	if (!nulls[Anum_sync_policy_##name - 1]) \
		policy->name = FROM_##kind(values[Anum_sync_policy_##name - 1]);

	SYNC_POLICY_SETTINGS(OVERRIDE)
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

/*
 * Reads labels and overrides.  The table is read directly, with the newest
 * snapshot and without privileges: what is kept here serves later
 * transactions of this session, under whatever role and isolation level.
 */
static void
load_policies(void)
{
	static bool callbacks_registered = false;
	const CatalogIds *ids = syncstate_ids();
	MemoryContext context;
	SyncPolicy *loaded;
	int			nloaded;

	if (!callbacks_registered)
	{
		CacheRegisterRelcacheCallback(rel_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(ENUMOID, enum_changed, (Datum) 0);
		callbacks_registered = true;
	}

	/*
	 * Set before reading, so that an invalidation that arrives meanwhile is
	 * seen; with an error, "policies_rel" keeps what is there from use.
	 */
	policies_rel = InvalidOid;
	policies_valid = true;
	policies_parallel = IsInParallelMode();

	/* the caller's until all is read, so that an error leaks nothing */
	context = AllocSetContextCreate(CurrentMemoryContext, "syncstate policies",
									ALLOCSET_SMALL_SIZES);
	loaded = builtin_policies(context, &nloaded);
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
 * Accepts invalidations itself.  In the middle of a transaction that holds its
 * locks already nobody else would, and a source that was paused meanwhile would
 * still be handed out.
 */
static const SyncPolicy *
kept_policies(int *n)
{
	AcceptInvalidationMessages();
	if (!policies_valid || policies_rel != syncstate_ids()->policy_rel ||
		(policies_parallel && !IsInParallelMode()))
		load_policies();
	*n = npolicies;
	return policies;
}

/* The effective policy of a source. */
SyncPolicy
syncstate_policy(Oid source)
{
	int			n;
	const SyncPolicy *all = kept_policies(&n);

	for (int i = 0; i < n; i++)
	{
		if (all[i].source == source)
			return all[i];
	}
	elog(ERROR, "unexpected sync source %u", source);
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

/* An effective policy as a row of sync_policy. */
Datum
syncstate_policy_row(const SyncPolicy *policy)
{
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(syncstate_ids()->policy_rowtype, -1);
	Datum	   *values = palloc0(tupdesc->natts * sizeof(Datum));
	bool	   *nulls = palloc(tupdesc->natts * sizeof(bool));
	Datum		result;

#define IS_OFF_DURATION(field)			false
#define IS_OFF_DURATION_OR_OFF(field)	((field) == 0)
#define IS_OFF_COUNT(field)				false
#define IS_OFF_COUNT_OR_OFF(field)		((field) == 0)
#define IS_OFF_FRACTION(field)			false
#define IS_OFF_TTL_FROM(field)			(policy->token_ttl == 0)
#define IS_OFF_PAUSE(field)				((field) == NO_TIME)
#define IS_OFF_TIME_OR_OFF(field)		IS_OFF_PAUSE(field)
#define IS_OFF_LABEL(field)				false
#define IS_OFF_KEEP_RUNS(field)			false

#define TO_DURATION(field)				IntervalPGetDatum(usecs_interval(field))
#define TO_DURATION_OR_OFF(field)		TO_DURATION(field)
#define TO_COUNT(field)					Int32GetDatum(field)
#define TO_COUNT_OR_OFF(field)			TO_COUNT(field)
#define TO_FRACTION(field)				Float8GetDatum(field)
#define TO_TTL_FROM(field)				CStringGetTextDatum(ttl_words[field])
#define TO_PAUSE(field)					TimestampTzGetDatum(field)
#define TO_TIME_OR_OFF(field)			TO_PAUSE(field)
#define TO_LABEL(field)					CStringGetTextDatum(NameStr(field))
#define TO_KEEP_RUNS(field)				CStringGetTextDatum(keep_runs_words[field])

#define SET(name, kind, least, most, builtin) \
	if (!IS_OFF_##kind(policy->name)) \
	{ \
		values[Anum_sync_policy_##name - 1] = TO_##kind(policy->name); \
		nulls[Anum_sync_policy_##name - 1] = false; \
	}

	memset(nulls, true, tupdesc->natts * sizeof(bool));
	values[Anum_sync_policy_source - 1] = ObjectIdGetDatum(policy->source);
	nulls[Anum_sync_policy_source - 1] = false;
	SYNC_POLICY_SETTINGS(SET)

	result = HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
	ReleaseTupleDesc(tupdesc);
	return result;
}

/* syncstate_get_sync_policy(source) -> sync_policy: see doc/syncstate.md. */
Datum
syncstate_get_sync_policy(PG_FUNCTION_ARGS)
{
	SyncPolicy	policy = syncstate_policy(syncstate_arg_source(fcinfo, 0));

	return syncstate_policy_row(&policy);
}

static void
check_setting_count(const char *name, int32 count, int32 least, int32 most,
					bool may_be_off)
{
	if (count >= least && count <= most)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 most == PG_INT32_MAX ?
			 errmsg("%s must be %d or more", name, least) :
			 errmsg("%s must be between %d and %d", name, least, most),
			 errdetail("Got %d.", count),
			 may_be_off ? errhint("Null turns it off.") : 0));
}

static void
check_fraction(const char *name, double fraction, double least, double most)
{
	if (!(fraction >= least && fraction <= most))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between %g and %g", name, least, most),
				 errdetail("Got %g.", fraction)));
}

static void
check_label(const char *name, const char *label)
{
	size_t		len = strlen(label);

	if (len < 1 || len > MAX_LABEL_BYTES ||
		strspn(label, "abcdefghijklmnopqrstuvwxyz0123456789_") != len)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be 1 to %d characters of a-z, 0-9 and _",
						name, MAX_LABEL_BYTES),
				 errdetail("Got %s.", quote_identifier(pnstrdup(label, pg_mbcliplen(label, len, 100))))));
}

static void
check_at_most(const char *name, int64 usecs, const char *other_name,
			  int64 other)
{
	if (usecs > other)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be at most %s", name, other_name),
				 errdetail("Got %lld seconds and %lld seconds.",
						   (long long) (usecs / USECS_PER_SEC),
						   (long long) (other / USECS_PER_SEC))));
}

/* Checks what somebody wants to override, together with what stays built in. */
void
syncstate_policy_check(HeapTupleHeader overrides)
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

#define CHECK_DURATION(name, value, least, most) \
	(void) syncstate_check_duration(#name, DatumGetIntervalP(value), least, most)
#define CHECK_DURATION_OR_OFF(name, value, least, most) \
	CHECK_DURATION(name, value, least, most)
#define CHECK_COUNT(name, value, least, most) \
	check_setting_count(#name, DatumGetInt32(value), least, most, false)
#define CHECK_COUNT_OR_OFF(name, value, least, most) \
	check_setting_count(#name, DatumGetInt32(value), least, most, true)
#define CHECK_FRACTION(name, value, least, most) \
	check_fraction(#name, DatumGetFloat8(value), least, most)
#define CHECK_TTL_FROM(name, value, least, most) \
	(void) syncstate_check_word(#name, TextDatumGetCString(value), ttl_words, \
								NUM_TTL_FROM)
#define CHECK_PAUSE(name, value, least, most) \
	if (!TIMESTAMP_IS_NOEND(DatumGetTimestampTz(value))) \
		syncstate_check_time(#name, DatumGetTimestampTz(value))
#define CHECK_TIME_OR_OFF(name, value, least, most) \
	syncstate_check_time(#name, DatumGetTimestampTz(value))

#define CHECK_LABEL(name, value, least, most) \
	check_label(#name, TextDatumGetCString(value))
#define CHECK_KEEP_RUNS(name, value, least, most) \
	(void) keep_runs_of(value)

#define CHECK(name, kind, least, most, builtin) \
	if (!nulls[Anum_sync_policy_##name - 1]) \
	{ \
		CHECK_##kind(name, values[Anum_sync_policy_##name - 1], least, most); \
	}

	SYNC_POLICY_SETTINGS(CHECK)

	apply_overrides(&effective, values, nulls);
	check_at_most("retry_base", effective.retry_base,
				  "retry_cap", effective.retry_cap);
	check_at_most("min_interval", effective.min_interval,
				  "max_interval", effective.max_interval);
}

/* Tells listening workers of work that became available; once per transaction. */
void
syncstate_wake_workers(const SyncPolicy *policy)
{
	Async_Notify("syncstate", NameStr(policy->label));
}

/* A copy of all effective policies, in the order of the enum. */
SyncPolicy *
syncstate_policies(int *n)
{
	const SyncPolicy *all = kept_policies(n);
	SyncPolicy *copy = palloc(Max(*n, 1) * sizeof(SyncPolicy));

	memcpy(copy, all, *n * sizeof(SyncPolicy));
	return copy;
}

/*
 * Counts the turns of sources at something; from another number in each session,
 * so that those of one call each do not all begin with the same source.
 */
uint32
syncstate_turn(uint32 *turn)
{
	if (*turn == 0)
		*turn = pg_prng_uint32(&pg_global_prng_state);
	return (*turn)++;
}

/* The sources of a provider, or all of them for NULL, in the order of the enum. */
Oid *
syncstate_sources_of_provider(const char *provider, int *nsources)
{
	int			n;
	const SyncPolicy *all = kept_policies(&n);
	Oid		   *sources = palloc(Max(n, 1) * sizeof(Oid));

	*nsources = 0;
	for (int i = 0; i < n; i++)
	{
		if (provider == NULL || strcmp(NameStr(all[i].provider), provider) == 0)
			sources[(*nsources)++] = all[i].source;
	}
	return sources;
}

/* The place of a source in the order of the enum. */
int
syncstate_source_rank(Oid source)
{
	int			n;
	const SyncPolicy *all = kept_policies(&n);
	int			rank = 0;

	while (rank < n && all[rank].source != source)
		rank++;
	return rank;
}
