/*
 * budget.c: dividing a source's budget of syncs among its rows
 *
 * What is learned about a source is kept in sync_budget, from where the
 * effective policy has it.
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

#include "policy.h"
#include "schedule.h"
#include "store.h"
#include "syncstate.h"

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
	double		own_rate;		/* syncs per second of rows that the budget does not rule */
	RateBucket *buckets;
	int			nbuckets;
	double		multiplier;		/* out: interval in seconds = multiplier / root */
	double		planned;		/* out: syncs per day, those of own intervals too */
	double		least;			/* out: the same with all at the longest interval */
	double		at_min;			/* out: rows at the shortest interval */
	double		at_max;			/* out: rows at the longest */
	double		late_share;		/* out: part of the planned syncs that is late */
} BudgetPlan;

/* Between which bounds a plan may set intervals; in seconds. */
typedef struct BudgetLimits
{
	double		shortest;
	double		longest;
	double		part;			/* of an interval that jitter leaves, on average */
} BudgetLimits;

/* What one pass over a source found. */
typedef struct Population
{
	int64		rows;
	int64		made;			/* since the last rebalance */
	double		starts;			/* of all their syncs ever */
	double		mean_rate;		/* changes per second */
	BudgetPlan	plan;
} Population;

PG_FUNCTION_INFO_V1(syncstate_rebalance_syncs);

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
read_population(const SyncPolicy *policy, double mean_rate, TimestampTz since,
				TimestampTz now, Population *population)
{
	uint64		nbuckets;
	double		changes = FIRST_CHANGES;
	double		seconds = FIRST_SECONDS;

	/* rows are made at the real time, whatever the clock says */
	if (since == NO_TIME || syncstate_clock_is_set())
		since = DT_NOEND;
	nbuckets = syncstate_store_rates(policy->source, mean_rate, since,
									 now - LATE_AFTER,
									 policy->push_renew_before != 0 ? now : DT_NOEND,
									 (double) policy->push_interval / USECS_PER_SEC);

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

/* qsort comparator */
static int
compare_doubles(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return (x > y) - (x < y);
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

/*
 * The multiplier between two of the points where a bucket meets or leaves a
 * clamp.  There the planned syncs are c + s / m, so that m = s / (target - c)
 * ("water-filling").
 */
static double
multiplier_between(const BudgetLimits *limits, const BudgetPlan *plan,
				   double low, double high)
{
	double		middle = low + (high - low) / 2;
	double		free_roots = 0;
	double		clamped;

	for (int i = 0; i < plan->nbuckets; i++)
	{
		double		interval = middle / plan->buckets[i].root;

		if (interval > limits->shortest && interval < limits->longest)
			free_roots += plan->buckets[i].rows * plan->buckets[i].root;
	}
	clamped = planned_syncs(limits, plan, middle) -
		free_roots / middle * SECS_PER_DAY / limits->part;
	return Min(Max(free_roots * SECS_PER_DAY / limits->part /
				   (plan->target - clamped), low), high);
}

/*
 * Finds the multiplier with which the planned syncs meet the target.
 *
 * With multiplier m, a row of rate l is synced each clamp(m / sqrt(l)) seconds.
 * The planned syncs fall as m grows: the points where a bucket meets or leaves a
 * clamp are searched.  No solution: as near as the clamps allow.  No rows: a row
 * that comes later begins with the policy's interval.
 */
static void
find_multiplier(const SyncPolicy *policy, const BudgetLimits *limits,
				BudgetPlan *plan)
{
	double	   *points = palloc(Max(2 * plan->nbuckets, 1) * sizeof(double));
	int			low = 0;		/* here more than the target is planned */
	int			high = 2 * plan->nbuckets - 1;	/* and here less */

	for (int i = 0; i < plan->nbuckets; i++)
	{
		points[2 * i] = plan->buckets[i].root * limits->shortest;
		points[2 * i + 1] = plan->buckets[i].root * limits->longest;
	}
	qsort(points, high + 1, sizeof(double), compare_doubles);

	if (high < 0)
		plan->multiplier = (double) policy->sync_interval / USECS_PER_SEC *
			sqrt(policy->mean_rate > 0 ? policy->mean_rate : 1.0 / SECS_PER_DAY);
	else if (planned_syncs(limits, plan, points[low]) <= plan->target)
		plan->multiplier = points[low];
	else if (planned_syncs(limits, plan, points[high]) >= plan->target)
		plan->multiplier = points[high];
	else
	{
		while (high - low > 1)
		{
			int			i = (low + high) / 2;

			if (planned_syncs(limits, plan, points[i]) > plan->target)
				low = i;
			else
				high = i;
		}
		plan->multiplier = multiplier_between(limits, plan, points[low],
											  points[high]);
	}
	plan->least = plan->nbuckets == 0 ?
		planned_syncs(limits, plan, plan->multiplier) :
		planned_syncs(limits, plan, points[2 * plan->nbuckets - 1]);
	pfree(points);
}

/* Divides the target among the buckets. */
static void
plan_budget(const SyncPolicy *policy, BudgetPlan *plan)
{
	BudgetLimits limits;
	double		late = 0;
	double		all = 0;

	limits.part = 1.0 - MEAN_JITTER * policy->jitter;
	limits.longest = (double) policy->max_interval / USECS_PER_SEC;
	if (policy->token_ttl != 0)
		limits.longest = Min(limits.longest,
							 policy->token_ttl * TTL_LAST_VISIT / USECS_PER_SEC);
	limits.shortest = Min((double) policy->min_interval / USECS_PER_SEC,
						  limits.longest);

	find_multiplier(policy, &limits, plan);
	plan->planned = planned_syncs(&limits, plan, plan->multiplier);
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
static double
corrected(double correction, double spent, double expected,
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

/*
 * Corrects a plan by the syncs that were started since the last one, which show
 * what that plan did not know.  Returns how many there were per day.
 */
static double
correct_plan(const SyncPolicy *policy, const SyncBudget *last,
			 Population *population, double days, double *correction)
{
	double		rows_then = (double) last->rows;
	double		gone = rows_then + population->made - population->rows;
	double		spent = population->starts - last->starts;

	/* deleted rows took their counts with them */
	if (gone > 0 && rows_then > 0)
		spent += Min(gone, rows_then) * last->starts / rows_then;
	spent = Max(spent, 0.0);
	*correction = corrected(last->correction, spent, last->expected, days,
							&population->plan);
	population->plan.target = policy->daily_budget * *correction;
	plan_budget(policy, &population->plan);
	return spent / days;
}

/* Rebalances a source that this session has locked. */
static void
rebalance(const SyncPolicy *policy, ReturnSetInfo *rsinfo)
{
	TimestampTz now = syncstate_now();
	SyncBudget	last;
	bool		is_first = !syncstate_store_budget(policy->source, &last);
	SyncBudget	next;
	double		observed = -1.0;
	Population	population;
	BudgetPlan *plan = &population.plan;
	Datum		values[9];
	bool		nulls[9] = {false};

	if (policy->daily_budget == 0)
	{
		if (!is_first)
			syncstate_store_budget_drop(policy->source);
		return;
	}
	if (is_first)
	{
		last.rebalanced_at = NO_TIME;
		last.mean_rate = FIRST_CHANGES / FIRST_SECONDS;
		last.correction = 1.0;
	}
	next = last;

	read_population(policy, next.mean_rate, last.rebalanced_at, now,
					&population);
	if (fabs(population.mean_rate / next.mean_rate - 1.0) > MEAN_TOLERANCE)
	{
		next.mean_rate = population.mean_rate;
		read_population(policy, next.mean_rate, last.rebalanced_at, now,
						&population);
	}
	plan->target = policy->daily_budget * last.correction;
	plan_budget(policy, plan);
	if (!is_first && now > last.rebalanced_at)
		observed = correct_plan(policy, &last, &population,
								(double) (now - last.rebalanced_at) / USECS_PER_DAY,
								&next.correction);

	next.multiplier = plan->multiplier;
	next.expected = plan->planned / next.correction;
	next.rebalanced_at = now;
	next.starts = population.starts;
	next.rows = population.rows;
	syncstate_store_budget_write(&next);

	values[0] = ObjectIdGetDatum(policy->source);
	values[1] = Int64GetDatum(population.rows);
	values[2] = Int32GetDatum(policy->daily_budget);
	values[3] = Float8GetDatum(plan->planned);
	values[4] = Float8GetDatum(observed);
	nulls[4] = observed < 0;
	values[5] = Float8GetDatum(plan->multiplier);
	values[6] = Int64GetDatum((int64) plan->at_min);
	values[7] = Int64GetDatum((int64) plan->at_max);
	values[8] = BoolGetDatum(plan->least <= policy->daily_budget);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* syncstate_rebalance_syncs(source) -> table: see doc/syncstate.md. */
Datum
syncstate_rebalance_syncs(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SyncPolicy *all;
	int			n;

	PreventCommandIfReadOnly("rebalance_syncs()");
	InitMaterializedSRF(fcinfo, 0);
	all = syncstate_policies(&n);

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

