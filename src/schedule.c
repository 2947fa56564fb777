/*
 * schedule.c: when: intervals, backoff, the lives of cursors, full syncs of a
 * whole source, the ends of limits
 *
 * Arithmetic only: the time is an argument, and nothing here runs SQL or raises
 * an error.  Durations are microseconds in int64; a day of an interval is 24
 * hours, whatever the time zone does.  Durations are at most MAX_DURATION, so
 * that no sum of a few of them and a legal time overflows.
 */
#include "postgres.h"

#include <math.h>

#include "common/hashfn.h"

#include "check.h"
#include "schedule.h"

/* What was learned of a row's changes loses half of its weight in this time. */
#define HALF_LIFE			(3.0 * SECS_PER_DAY)

/*
 * One sync shows at most so many changes: an import of 500 events is one event
 * and not a rate of 500.
 */
#define MAX_CHANGES			3

/*
 * Changes after which older ones are forgotten, however recent.  That is enough
 * to know a rate to within 29 %, which costs at most 2 % of the delay, and few
 * enough to notice within hours that a busy row has fallen silent.
 */
#define MAX_MEMORY			12.0

static uint64
row_hash(const SyncPolicy *policy, const SyncKey *key)
{
	uint64		hash;

	hash = hash_bytes_extended(key->user_id.data, UUID_LEN, policy->label_hash);
	hash = hash_bytes_extended((unsigned char *) VARDATA_ANY(key->account),
							   VARSIZE_ANY_EXHDR(key->account), hash);
	return hash_bytes_extended((unsigned char *) VARDATA_ANY(key->resource),
							   VARSIZE_ANY_EXHDR(key->resource), hash);
}

/* A hash as a number in [0, 1). */
static double
unit_of(uint64 hash)
{
	return ldexp((double) (hash >> 11), -53);
}

/*
 * A number in [0, 1) that is the row's own: the same in every database and
 * after each restore, so that schedules spread and stay.
 */
double
syncstate_row_part(const SyncPolicy *policy, const SyncKey *key)
{
	return unit_of(row_hash(policy, key));
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

bool
syncstate_has_cursor(const SyncState *row)
{
	return row->sync_token != NULL || row->history_id != NULL ||
		row->updated_min != NO_TIME;
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

/* The last moment of the life of the row's cursor; DT_NOEND: it does not die. */
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

/* An interval, shortened by jitter for a row with this part. */
static int64
jittered(const SyncPolicy *policy, int64 interval, double part)
{
	return interval - (int64) (interval * policy->jitter * (0.5 + 0.5 * part));
}

/*
 * When a row whose push channel is trusted no longer is polled again at the
 * latest: within its ordinary interval, at its own part, so that channels that
 * fall silent together do not lead to polls all at once.
 */
static TimestampTz
poll_after_push(const SyncPolicy *policy, const SyncState *row, TimestampTz until)
{
	return until + (int64) (row_interval(policy, row) *
							syncstate_row_part(policy, &row->key));
}

/*
 * The due time of a row that waits for its interval, now that its push channel
 * is trusted until another time.
 */
TimestampTz
syncstate_due_with_push(const SyncPolicy *policy, const SyncState *row,
						TimestampTz now)
{
	return Min(row->due_at,
			   poll_after_push(policy, row, Max(row->push_until, now)));
}

/*
 * When a row is due again after a completion.
 *
 * The row's interval, counted from start to start, and shortened by between
 * half and the whole of jitter: always a little shorter, never longer, so that
 * a cron of the same interval finds the row due at every tick.  Not before a
 * tenth of the interval has passed, and not after the last visit that the
 * cursor's life allows.  While a push channel tells of changes, push_interval
 * counts instead, if it is longer.
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
	TimestampTz due = start + jittered(policy, interval, part);
	TimestampTz anchor = ttl_anchor(policy, row);

	if (policy->push_renew_before != 0 && row->push_until > now)
	{
		TimestampTz rare = start + jittered(policy, policy->push_interval, part);

		due = Max(due, Min(rare, poll_after_push(policy, row, row->push_until)));
	}

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
 * The latest time for which any rule makes a row due.  Only a clock that was
 * wrong, a setting that was longer then, or a client gives a later one.
 */
static TimestampTz
latest_due(const SyncPolicy *policy, const SyncState *row, TimestampTz now)
{
	int64		wait = Max(policy->retry_cap, MAX_RELEASE_DELAY);

	if (row->sync_interval != NULL)
		wait = Max(wait, syncstate_interval_usecs(row->sync_interval));
	else
		wait = Max(wait, policy->daily_budget != 0 ?
				   policy->max_interval : policy->sync_interval);
	if (policy->push_renew_before != 0)
		wait = Max(wait, policy->push_interval);
	if (row->status == SYNC_RATE_LIMITED)
		wait = Max(wait, MAX_RETRY_AFTER + MAX_RETRY_AFTER / 10);
	return now + wait;
}

/* The due time, or now where no rule gives it. */
TimestampTz
syncstate_settled_due(const SyncPolicy *policy, const SyncState *row,
					  TimestampTz now)
{
	return row->due_at > latest_due(policy, row, now) ? now : row->due_at;
}

/* The end of the lease, or that of one given now where no rule gives it. */
TimestampTz
syncstate_settled_lease(const SyncPolicy *policy, const SyncState *row,
						TimestampTz now)
{
	return row->lease_expires_at > now + MAX_LEASE_TIME ?
		now + policy->lease_time : row->lease_expires_at;
}

/* The end of the account's limit, or none where no rule gives it. */
TimestampTz
syncstate_settled_limit(const SyncState *row, TimestampTz now)
{
	return row->limited_until > now + MAX_RETRY_AFTER ?
		NO_TIME : row->limited_until;
}

/* Brings back what lies further ahead than any rule allows. */
void
syncstate_settle_times(SyncState *row, const SyncPolicy *policy,
					   TimestampTz now)
{
	row->due_at = syncstate_settled_due(policy, row, now);
	if (row->requested_at > now)
		row->requested_at = now;
	row->lease_expires_at = syncstate_settled_lease(policy, row, now);
	row->limited_until = syncstate_settled_limit(row, now);
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

/* Whether a row's failures have come half as far as to park it. */
bool
syncstate_is_failing(const SyncPolicy *policy, int64 failures,
					 TimestampTz failing_since, TimestampTz now)
{
	return failures >= (policy->max_failures + INT64CONST(1)) / 2 &&
		failing_since != NO_TIME &&
		now - failing_since >= policy->park_after / 2;
}

/* The end of the nth backoff after a run that ends without a report. */
static TimestampTz
lost_until(const SyncPolicy *policy, const SyncState *row, int32 n)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) &row->lease,
										   sizeof(row->lease),
										   row_hash(policy, &row->key));

	return row->lease_expires_at + syncstate_backoff(policy, n, unit_of(hash));
}

/*
 * From when on a claim takes a row whose run ends without a report: from the
 * end of the lease if that is the row's first failure in a row, or if the claim
 * will park it; otherwise after the same backoff as a failure that was reported.
 *
 * The random part comes from the row's key and lease: every caller gets the same
 * time, and the rows of one batch get different ones, so that a row that kills
 * its worker is soon claimed alone.
 */
TimestampTz
syncstate_lease_over(const SyncPolicy *policy, const SyncState *row)
{
	if (row->failures == 0 ||
		syncstate_is_hopeless(policy, (int64) row->failures + 1,
							  row->failing_since, row->lease_expires_at))
		return row->lease_expires_at;
	return lost_until(policy, row, Min(row->failures, PG_INT32_MAX - 1) + 1);
}

/*
 * From when on a request leads to a sync: not before a gap after the last start,
 * and a failing row's not before retry_base.  Where its run is lost, it waits for
 * the first backoff: what was claimed together must part here, too.
 */
TimestampTz
syncstate_request_opens(const SyncPolicy *policy, const SyncState *row)
{
	int64		gap = policy->request_gap;
	TimestampTz opens = row->requested_at;

	if (row->failures > 0)
	{
		gap = Max(gap, policy->retry_base);
		if (row->status == SYNC_SYNCING)
			opens = Max(opens, lost_until(policy, row, 1));
	}

	/* the clock may have been set back since */
	if (row->last_sync_at != NO_TIME)
		opens = Max(opens, Min(row->last_sync_at, row->requested_at) + gap);
	return opens;
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
 * From when on the row's next start belongs to the planned full sync of its
 * source; DT_NOEND: it does not, or no more.
 *
 * A row comes at its own part of the spread.  A full sync that was running when
 * the plan was made began before it, so that row's next start begins anew: only
 * then does last_sync_at still tell.
 */
static TimestampTz
resync_at(const SyncPolicy *policy, const SyncState *row)
{
	TimestampTz from = policy->resync_from;
	bool		was_running = row->last_sync_at != NO_TIME &&
		row->last_sync_at < from;

	if (from == NO_TIME)
		return DT_NOEND;
	if (!syncstate_has_cursor(row))
		return was_running && row->full_sync_id != NO_COUNT ? from : DT_NOEND;
	if (row->last_full_sync_at == NO_TIME || row->last_full_sync_at < from)
		return from + (int64) (syncstate_row_part(policy, &row->key) *
							   policy->resync_spread);
	return was_running ? from : DT_NOEND;
}

/*
 * Whether a start drops the cursor and the place in a listing: the provider has
 * forgotten the cursor by now, or will before the row is likely to be seen again,
 * or a full sync of the whole source is planned.
 */
bool
syncstate_begins_anew(const SyncPolicy *policy, const SyncState *row,
					  TimestampTz now)
{
	return now > cursor_dies_at(policy, row) || now >= resync_at(policy, row);
}
