/*-------------------------------------------------------------------------
 *
 * budget.c
 *		Dividing a source's budget of syncs among its rows
 *
 * The arithmetic is in policy.c.  What is learned about a source stands in
 * sync_budget, from where the effective policy has it.
 *
 * src/budget.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_enum.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "syncstate.h"

/* A row that fell due so long ago is waiting for workers, not for its time. */
#define LATE_AFTER		USECS_PER_HOUR

/*
 * What the prior of the population's rate is worth: one change in a day.  It
 * decides while nothing was watched yet, and keeps the rate above 0 where
 * nothing ever changes.
 */
#define FIRST_CHANGES	1.0
#define FIRST_SECONDS	86400.0

/*
 * The population's mean may move by so much of itself before rows are judged
 * by the new one, so that one pass over the rows is enough nearly always.
 */
#define MEAN_TOLERANCE	0.05

/* What one pass over a source found. */
typedef struct Population
{
	int64		rows;
	int64		made;			/* since the last rebalance */
	double		starts;			/* sum of the fencing numbers */
	double		mean_rate;		/* changes per second */
	BudgetPlan	plan;
} Population;

static void rebalance(const SyncPolicy *policy, ReturnSetInfo *rsinfo);
static bool lock_budget(Oid source);
static void read_population(Oid source, double mean_rate, TimestampTz since,
							TimestampTz now, Population *population);

PG_FUNCTION_INFO_V1(syncstate_rebalance_syncs);

/*
 * syncstate_rebalance_syncs(source sync_source)
 *		-> table (source sync_source, rows int8, budget int4, planned float8,
 *				  observed float8, multiplier float8, at_min int8, at_max int8,
 *				  feasible boolean)
 *
 * Divides the daily budget of a source among its rows anew, by how often each
 * one changes.
 *
 *	source	null: all sources that have a budget
 *
 * Returns a row per source: the rows that are not parked; the budget; the
 * syncs per day that are planned, and those that were started since the last
 * call; the multiplier; how many rows stand at min_interval and max_interval;
 * and whether the budget can be met.  A source that another session is
 * rebalancing is left out.
 *
 * Errors: 42501 without the privileges of a worker.
 * Formula: interval = multiplier / sqrt(change rate), see
 *		   syncstate_plan_budget() and syncstate_correction().
 */
Datum
syncstate_rebalance_syncs(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	const SyncPolicy *kept;
	SyncPolicy *all;
	int			n;

	PreventCommandIfReadOnly("rebalance_syncs()");
	InitMaterializedSRF(fcinfo, 0);
	kept = syncstate_policies(&n);
	all = palloc(Max(n, 1) * sizeof(SyncPolicy));
	memcpy(all, kept, n * sizeof(SyncPolicy));

	SPI_connect();
	for (int i = 0; i < n; i++)
	{
		if ((PG_ARGISNULL(0) || all[i].source == PG_GETARG_OID(0)) &&
			lock_budget(all[i].source))
			rebalance(&all[i], rsinfo);
	}
	SPI_finish();
	return (Datum) 0;
}

/* Rebalances a source that this session has locked. */
static void
rebalance(const SyncPolicy *policy, ReturnSetInfo *rsinfo)
{
	TimestampTz now = syncstate_now();
	Datum		learned[Natts_sync_budget];
	bool		learned_nulls[Natts_sync_budget];
	bool		is_first = !syncstate_store_budget(policy->source, learned,
												   learned_nulls);
	TimestampTz then = NO_TIME;
	double		mean_rate = FIRST_CHANGES / FIRST_SECONDS;
	double		correction = 1.0;
	double		observed = -1.0;
	Population	population;
	Datum		values[9];
	bool		nulls[9] = {false};

	if (policy->daily_budget == 0)
	{
		if (!is_first)
			syncstate_store_budget_drop(policy->source);
		return;
	}
	if (!is_first)
	{
		then = DatumGetTimestampTz(learned[Anum_sync_budget_rebalanced_at - 1]);
		mean_rate = DatumGetFloat8(learned[Anum_sync_budget_mean_rate - 1]);
		correction = DatumGetFloat8(learned[Anum_sync_budget_correction - 1]);
	}

	read_population(policy->source, mean_rate, then, now, &population);
	if (fabs(population.mean_rate / mean_rate - 1.0) > MEAN_TOLERANCE)
	{
		mean_rate = population.mean_rate;
		read_population(policy->source, mean_rate, then, now, &population);
	}

	/* what the plan did not know shows in what was started since */
	population.plan.target = policy->daily_budget * correction;
	syncstate_plan_budget(policy, &population.plan);
	if (!is_first && now > then)
	{
		double		rows_then = (double) DatumGetInt64(learned[Anum_sync_budget_rows - 1]);
		double		starts_then = DatumGetFloat8(learned[Anum_sync_budget_starts - 1]);
		double		expected = DatumGetFloat8(learned[Anum_sync_budget_expected - 1]);
		double		days = (double) (now - then) / USECS_PER_DAY;
		double		gone = rows_then + population.made - population.rows;
		double		spent = population.starts - starts_then;

		/* deleted rows took their numbers with them */
		if (gone > 0 && rows_then > 0)
			spent += Min(gone, rows_then) * starts_then / rows_then;
		spent = Max(spent, 0.0);
		observed = spent / days;
		correction = syncstate_correction(correction, spent, expected, days,
										  &population.plan);
		population.plan.target = policy->daily_budget * correction;
		syncstate_plan_budget(policy, &population.plan);
	}

	learned[Anum_sync_budget_source - 1] = ObjectIdGetDatum(policy->source);
	learned[Anum_sync_budget_multiplier - 1] =
		Float8GetDatum(population.plan.multiplier);
	learned[Anum_sync_budget_mean_rate - 1] = Float8GetDatum(mean_rate);
	learned[Anum_sync_budget_correction - 1] = Float8GetDatum(correction);
	learned[Anum_sync_budget_expected - 1] =
		Float8GetDatum(population.plan.planned / correction);
	learned[Anum_sync_budget_rebalanced_at - 1] = TimestampTzGetDatum(now);
	learned[Anum_sync_budget_starts - 1] = Float8GetDatum(population.starts);
	learned[Anum_sync_budget_rows - 1] = Int64GetDatum(population.rows);
	syncstate_store_budget_write(learned);

	values[0] = ObjectIdGetDatum(policy->source);
	values[1] = Int64GetDatum(population.rows);
	values[2] = Int32GetDatum(policy->daily_budget);
	values[3] = Float8GetDatum(population.plan.planned);
	values[4] = Float8GetDatum(observed);
	nulls[4] = observed < 0;
	values[5] = Float8GetDatum(population.plan.multiplier);
	values[6] = Int64GetDatum((int64) population.plan.at_min);
	values[7] = Int64GetDatum((int64) population.plan.at_max);
	values[8] = BoolGetDatum(population.plan.least <= policy->daily_budget);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * Locks the budget of a source until the end of the transaction; false if
 * another session has it, whose result will do.
 */
static bool
lock_budget(Oid source)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, EnumRelationId, source, 0);
	return LockAcquire(&tag, ExclusiveLock, false, true) !=
		LOCKACQUIRE_NOT_AVAIL;
}

/* Reads the rows of a source, their rates under a prior of mean_rate. */
static void
read_population(Oid source, double mean_rate, TimestampTz since,
				TimestampTz now, Population *population)
{
	uint64		nbuckets;
	double		changes = FIRST_CHANGES;
	double		seconds = FIRST_SECONDS;

	/* rows are made at the real time, whatever the clock says */
	if (since == NO_TIME || syncstate_clock_is_set())
		since = DT_NOEND;
	nbuckets = syncstate_store_rates(source, mean_rate, since, now - LATE_AFTER);

	MemSet(population, 0, sizeof(*population));
	population->plan.buckets = palloc(Max(nbuckets, 1) * sizeof(RateBucket));
	for (uint64 i = 0; i < nbuckets; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	tupdesc = SPI_tuptable->tupdesc;
		bool		isnull;
		int32		kind = DatumGetInt32(SPI_getbinval(tuple, tupdesc, 1, &isnull));
		int64		rows = DatumGetInt64(SPI_getbinval(tuple, tupdesc, 2, &isnull));
		Datum		value;

		population->rows += rows;
		value = SPI_getbinval(tuple, tupdesc, 5, &isnull);
		changes += isnull ? 0 : DatumGetFloat8(value);
		value = SPI_getbinval(tuple, tupdesc, 6, &isnull);
		seconds += isnull ? 0 : DatumGetFloat8(value);
		population->starts += DatumGetFloat8(SPI_getbinval(tuple, tupdesc, 7, &isnull));
		population->made += DatumGetInt64(SPI_getbinval(tuple, tupdesc, 9, &isnull));

		if (kind == 1)
			population->plan.own_rate =
				DatumGetFloat8(SPI_getbinval(tuple, tupdesc, 4, &isnull));
		else if (kind == 0)
		{
			RateBucket *bucket =
				&population->plan.buckets[population->plan.nbuckets++];

			bucket->rows = (double) rows;
			bucket->root = DatumGetFloat8(SPI_getbinval(tuple, tupdesc, 3, &isnull));
			bucket->late = (double) DatumGetInt64(SPI_getbinval(tuple, tupdesc, 8, &isnull));
		}
	}
	population->mean_rate = changes / seconds;
}
