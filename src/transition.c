/*
 * transition.c: the state machine
 *
 * A transition changes the row in memory.  It sees the row, what the call says,
 * the effective policy and the time; it runs no SQL and raises no error, so
 * that a batch can apply it to many rows, and a test can call it alone.
 *
 * A direct write of a client amounts to one of these transitions too, which
 * syncstate_recognize() finds and syncstate_follow_write() applies.
 *
 * What is told of a transition, its events and the run that it ended, follows
 * from the row before and after it: see tell().
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "utils/builtins.h"

#include "schedule.h"
#include "transition.h"

#define RATE_LIMIT_MESSAGE	"API rate limit exceeded"

/* From this many cursor losses in a row on, the row waits; then it is parked. */
#define LOSSES_TO_WAIT		3
#define LOSSES_TO_PARK		10

const char *const syncstate_outcomes[NUM_OUTCOMES] = {
	[OUTCOME_COMPLETED] = "completed",
	[OUTCOME_FAILED] = "failed",
	[OUTCOME_RATE_LIMITED] = "rate_limited",
	[OUTCOME_RELEASED] = "released",
	[OUTCOME_LOST] = "lost",
	[OUTCOME_REVOKED] = "revoked",
};

const char *const syncstate_failure_kinds[NUM_FAILURE_KINDS] = {
	[FAILURE_TRANSIENT] = "transient",
	[FAILURE_PERMANENT] = "permanent",
	[FAILURE_AUTH] = "auth",
};

const char *const syncstate_scopes[NUM_LIMIT_SCOPES] = {
	[SCOPE_ROW] = "row",
	[SCOPE_ACCOUNT] = "account",
	[SCOPE_SOURCE] = "source",
};

/* Whether a lease is held; one that expired is, until somebody takes it over. */
bool
syncstate_lease_is_held(const SyncState *row, int64 lease)
{
	return row->status == SYNC_SYNCING && row->lease == lease;
}

/*
 * Whether a lease was lost for good: numbers only grow, and the run of the last
 * one has ended.
 */
bool
syncstate_lease_is_stale(const SyncState *row, int64 lease)
{
	return lease < row->lease ||
		(lease == row->lease && row->status != SYNC_SYNCING);
}

/*
 * Whether a call ends or checkpoints a run that a claim has handed out, and that
 * is not its caller's: it came without the lease, which is live.
 */
bool
syncstate_lease_is_missing(Transition transition, const SyncState *row,
						   const Report *report, TimestampTz now)
{
	return !report->has_lease && row->lease_required &&
		row->status == SYNC_SYNCING && row->lease_expires_at > now &&
		(transition == TRANSITION_COMPLETE || transition == TRANSITION_FAIL ||
		 transition == TRANSITION_RATE_LIMIT ||
		 transition == TRANSITION_CHECKPOINT);
}

/* How long a rate limit lasts. */
int64
syncstate_limit_wait(const Report *report, const SyncPolicy *policy)
{
	return report->retry_after != 0 ? report->retry_after :
		policy->rate_limit_wait;
}

/* Counts one more failure of the present run of them. */
static void
count_failure(SyncState *row, TimestampTz now)
{
	if (row->failures < PG_INT32_MAX)
		row->failures++;
	if (row->failing_since == NO_TIME)
		row->failing_since = now;
}

static void
forget_failures(SyncState *row)
{
	row->failures = 0;
	row->failing_since = NO_TIME;
}

/* Lets a full sync begin: no cursor, and from the first page. */
static void
drop_cursor(SyncState *row)
{
	row->sync_token = NULL;
	row->history_id = NULL;
	row->updated_min = NO_TIME;
	row->token_issued_at = NO_TIME;
	row->full_sync_id = NO_COUNT;
	row->page_token = NULL;
	row->progress_done = NO_COUNT;
	row->progress_total = NO_COUNT;
}

/* A run without a cursor is a full sync, which has the number of its first lease. */
static void
name_full_sync(SyncState *row)
{
	if (syncstate_has_cursor(row))
		row->full_sync_id = NO_COUNT;
	else if (row->full_sync_id == NO_COUNT)
		row->full_sync_id = row->lease;
}

static void
count_starts(SyncState *row, int64 starts)
{
	row->syncs_started = Min(row->syncs_started + starts, PG_INT32_MAX);
}

/*
 * A start, by a claim or by name.  A lease that ran out without a report counts
 * as a failure.  No cursor is handed out that the provider has forgotten by now,
 * or that a full sync of the whole source is to replace.  A full sync goes on
 * under its name until it is completed.
 */
static void
start(SyncState *row, const Report *report, const SyncPolicy *policy,
	  TimestampTz now)
{
	if (row->status == SYNC_SYNCING && row->lease_expires_at <= now)
		count_failure(row, now);
	if (syncstate_begins_anew(policy, row, now))
		drop_cursor(row);
	row->status = SYNC_SYNCING;
	row->lease++;
	count_starts(row, 1);
	row->lease_expires_at = now +
		(report->lease_time != 0 ? report->lease_time : policy->lease_time);
	row->last_sync_at = now;
	row->run_requested_at = row->requested_at;
	row->requested_at = NO_TIME;
	row->error_message = NULL;
	row->lease_required = report->is_claim;
	if (row->limited_until <= now)
		row->limited_until = NO_TIME;
	name_full_sync(row);

	/* if the run crashes, the row is due when its lease ends, not later */
	if (row->due_at != NO_TIME)
		row->due_at = Min(row->due_at, now);
}

/* Ends the run in flight: nobody holds the row any more. */
static void
end_run(SyncState *row, SyncStatus status, text *error_message)
{
	row->status = status;
	row->lease_expires_at = NO_TIME;
	row->lease_required = false;
	row->run_requested_at = NO_TIME;
	row->error_message = error_message;
}

/* Takes a row out of the lanes, until it is resumed or connected. */
static void
park(SyncState *row, ParkedReason reason)
{
	row->due_at = NO_TIME;
	row->parked_reason = cstring_to_text(syncstate_parked_reasons[reason]);
}

/* A failure does not end a pause, which is the user's own, nor bring back what is gone. */
static void
park_failed(SyncState *row, ParkedReason reason, TimestampTz now)
{
	row->troubled_at = now;
	if (!syncstate_is_parked_for(row, PARKED_PAUSED) &&
		!syncstate_is_parked_for(row, PARKED_GONE))
		park(row, reason);
}

/* The end of a row whose lease ran out once too often. */
static void
give_up(SyncState *row, const Report *report, const SyncPolicy *policy,
		TimestampTz now)
{
	count_failure(row, now);
	end_run(row, SYNC_ERROR, cstring_to_text(LEASE_EXPIRED_MESSAGE));
	park(row, PARKED_FAILURES);
	row->troubled_at = now;
}

/* Compares tidy history ids as numbers. */
static int
compare_history_ids(const text *a, const text *b)
{
	Size		a_len = VARSIZE_ANY_EXHDR(a);
	Size		b_len = VARSIZE_ANY_EXHDR(b);

	if (a_len != b_len)
		return a_len < b_len ? -1 : 1;
	return memcmp(VARDATA_ANY(a), VARDATA_ANY(b), a_len);
}

/* Makes a row due at a time, unless it is parked. */
static void
set_due(SyncState *row, TimestampTz due_at)
{
	if (row->parked_reason == NULL)
		row->due_at = due_at;
}

static void
complete(SyncState *row, const Report *report, const SyncPolicy *policy,
		 TimestampTz now)
{
	bool		was_full = !syncstate_has_cursor(row);
	bool		given = false;

	if (report->sync_token != NULL && VARSIZE_ANY_EXHDR(report->sync_token) > 0)
	{
		row->sync_token = report->sync_token;
		given = true;
	}
	if (report->history_id != NULL &&
		(row->history_id == NULL ||
		 compare_history_ids(report->history_id, row->history_id) >= 0))
	{
		row->history_id = report->history_id;
		given = true;
	}
	if (report->updated_min != NO_TIME &&
		(row->updated_min == NO_TIME || report->updated_min >= row->updated_min))
	{
		row->updated_min = report->updated_min;
		given = true;
	}

	/* a cursor given again was confirmed by the provider: it is as good as new */
	if (given)
		row->token_issued_at = now;
	if (was_full)
		row->last_full_sync_at = now;

	end_run(row, SYNC_IDLE, NULL);
	row->full_sync_id = NO_COUNT;
	row->page_token = NULL;
	row->progress_done = NO_COUNT;
	row->progress_total = NO_COUNT;
	row->items_synced = report->items_synced;

	/* a full sync lists what there is, not what changed */
	if (!was_full)
		syncstate_learn(row, now);
	row->last_successful_sync_at = now;
	forget_failures(row);
	row->token_losses = 0;
	row->troubled_at = NO_TIME;
	set_due(row, syncstate_next_due(policy, row, now));
}

/* Whether a row whose failure was counted says that the grant has ended. */
bool
syncstate_grant_is_dead(const SyncState *row, const Report *report,
						const SyncPolicy *policy)
{
	return report->kind == FAILURE_AUTH &&
		row->failures >= policy->auth_failures;
}

static void
wait_after_failure(SyncState *row, const SyncPolicy *policy, int32 n,
				   TimestampTz now)
{
	set_due(row, now + syncstate_backoff(policy, n,
										 pg_prng_double(&pg_global_prng_state)));
}

static void
fail(SyncState *row, const Report *report, const SyncPolicy *policy,
	 TimestampTz now)
{
	count_failure(row, now);
	end_run(row, SYNC_ERROR, report->error_message);
	if (syncstate_grant_is_dead(row, report, policy))
		park_failed(row, PARKED_AUTH, now);
	else if (syncstate_is_hopeless(policy, row->failures, row->failing_since, now))
		park_failed(row, PARKED_FAILURES, now);
	else if (report->kind != FAILURE_TRANSIENT)
		set_due(row, now + policy->retry_cap);
	else
		wait_after_failure(row, policy, row->failures, now);
}

/* The quota domain of the row is limited: no limit cuts another one short. */
static void
limit(SyncState *row, TimestampTz until)
{
	row->limited_until = Max(row->limited_until, until);
}

static void
rate_limit(SyncState *row, const Report *report, const SyncPolicy *policy,
		   TimestampTz now)
{
	TimestampTz end = syncstate_limit_end(policy, &row->key,
										  syncstate_limit_wait(report, policy),
										  now);

	/* a limit that is in force already is not cut short */
	if (row->status == SYNC_RATE_LIMITED)
		end = Max(end, row->due_at);
	end_run(row, SYNC_RATE_LIMITED, cstring_to_text(RATE_LIMIT_MESSAGE));
	set_due(row, end);
	if (report->scope == SCOPE_ACCOUNT)
		limit(row, now + syncstate_limit_wait(report, policy));
}

/* A sync in flight goes on. */
static void
limit_row(SyncState *row, const Report *report, const SyncPolicy *policy,
		  TimestampTz now)
{
	limit(row, report->limited_until);
}

/*
 * The provider has forgotten the cursor.  With a lease the run continues, as a
 * full sync; without one it is revoked.
 */
static void
clear_token(SyncState *row, const Report *report, const SyncPolicy *policy,
			TimestampTz now)
{
	drop_cursor(row);
	if (row->token_losses < PG_INT32_MAX)
		row->token_losses++;

	if (row->token_losses >= LOSSES_TO_WAIT)
	{
		/* the provider takes no cursor that it gave: full syncs are costly */
		end_run(row, SYNC_ERROR,
				cstring_to_text(psprintf("cursor lost %d times in a row",
										 row->token_losses)));
		if (row->token_losses >= LOSSES_TO_PARK)
			park_failed(row, PARKED_TOKEN_LOOP, now);
		else
			wait_after_failure(row, policy, row->token_losses, now);
	}
	else if (!report->has_lease)
	{
		if (row->status == SYNC_SYNCING)
			end_run(row, SYNC_IDLE, row->error_message);
		set_due(row, now);
	}
	else
		row->full_sync_id = row->lease;
}

static void
renew(SyncState *row, const Report *report, const SyncPolicy *policy,
	  TimestampTz now)
{
	row->lease_expires_at = now + (report->lease_time != 0 ?
								   report->lease_time : policy->lease_time);
}

static void
checkpoint(SyncState *row, const Report *report, const SyncPolicy *policy,
		   TimestampTz now)
{
	if (report->page_token != NULL)
	{
		/* that is progress, however the run ends */
		if (!syncstate_same_text(report->page_token, row->page_token))
			forget_failures(row);
		row->page_token = report->page_token;
	}
	if (report->progress_done != NO_COUNT)
		row->progress_done = report->progress_done;
	if (report->progress_total != NO_COUNT)
		row->progress_total = report->progress_total;

	/* a lease that was claimed for longer is not cut short */
	row->lease_expires_at = Max(row->lease_expires_at, now + policy->lease_time);
}

/* The row is due after all that are due already. */
static void
release(SyncState *row, const Report *report, const SyncPolicy *policy,
		TimestampTz now)
{
	end_run(row, SYNC_IDLE, NULL);
	set_due(row, now + report->delay);
}

/* Forgets what went wrong, and times that only a wrong clock can have given. */
static void
begin_anew(SyncState *row, const SyncPolicy *policy, TimestampTz now)
{
	syncstate_settle_times(row, policy, now);
	forget_failures(row);
	row->token_losses = 0;
	if (row->status == SYNC_ERROR)
		end_run(row, SYNC_IDLE, NULL);
}

static void
resume_row(SyncState *row, const Report *report, const SyncPolicy *policy,
		   TimestampTz now)
{
	if (row->due_at == NO_TIME)
	{
		row->parked_reason = NULL;
		row->due_at = now + report->delay;
	}
	begin_anew(row, policy, now);
}

/* A pause is the user's own, and takes resume_sync. */
static void
connect_row(SyncState *row, const Report *report, const SyncPolicy *policy,
			TimestampTz now)
{
	if (syncstate_is_parked_for(row, PARKED_PAUSED))
		begin_anew(row, policy, now);
	else
		resume_row(row, report, policy, now);
	if (row->requested_at == NO_TIME)
		row->requested_at = now;
}

static void
pause_row(SyncState *row, const Report *report, const SyncPolicy *policy,
		  TimestampTz now)
{
	park(row, PARKED_PAUSED);
}

/* What was parked before keeps its reason. */
static void
revoke_row(SyncState *row, const Report *report, const SyncPolicy *policy,
		   TimestampTz now)
{
	if (row->parked_reason == NULL)
		park(row, PARKED_AUTH);
}

static void
leave_row(SyncState *row, const Report *report, const SyncPolicy *policy,
		  TimestampTz now)
{
	park(row, PARKED_GONE);
}

/*
 * Only the wait for the interval becomes shorter, not that for a limit or after a
 * failure.  A sync in flight may have listed what has changed again since, and
 * nobody called back: it is followed by one more.
 */
static void
trust_push(SyncState *row, const Report *report, const SyncPolicy *policy,
		   TimestampTz now)
{
	row->push_until = report->push_until;
	if (report->push_begins && row->status == SYNC_SYNCING &&
		row->requested_at == NO_TIME)
		row->requested_at = now;
	if (row->status == SYNC_IDLE && row->due_at != NO_TIME)
		row->due_at = syncstate_due_with_push(policy, row, now);
}

typedef void (*TransitionFunction) (SyncState *row, const Report *report,
									const SyncPolicy *policy, TimestampTz now);

static const TransitionFunction transitions[NUM_TRANSITIONS] = {
	[TRANSITION_START] = start,
	[TRANSITION_GIVE_UP] = give_up,
	[TRANSITION_COMPLETE] = complete,
	[TRANSITION_FAIL] = fail,
	[TRANSITION_RATE_LIMIT] = rate_limit,
	[TRANSITION_CLEAR_TOKEN] = clear_token,
	[TRANSITION_RENEW] = renew,
	[TRANSITION_CHECKPOINT] = checkpoint,
	[TRANSITION_RELEASE] = release,
	[TRANSITION_CONNECT] = connect_row,
	[TRANSITION_PAUSE] = pause_row,
	[TRANSITION_RESUME] = resume_row,
	[TRANSITION_LIMIT] = limit_row,
	[TRANSITION_REVOKE] = revoke_row,
	[TRANSITION_LEAVE] = leave_row,
	[TRANSITION_TRUST_PUSH] = trust_push,
};

/* Whether a row is parked by a failure, and not by somebody's wish. */
static bool
is_parked_by_failure(const SyncState *row)
{
	return row->parked_reason != NULL &&
		!syncstate_is_parked_for(row, PARKED_PAUSED) &&
		!syncstate_is_parked_for(row, PARKED_GONE);
}

/*
 * A row is in trouble from when it is parked by a failure, or is half-way there,
 * until it completes.  It comes to be half-way there once in a run of failures.
 */
static bool
begins_to_fail(const SyncState *old, const SyncState *row,
			   const SyncPolicy *policy, TimestampTz now)
{
	return row->failures > old->failures &&
		syncstate_is_failing(policy, row->failures, row->failing_since, now) &&
		old->troubled_at <= row->failing_since;
}

/* Changes a row, which was *old before. */
static void
transit(Transition transition, const SyncState *old, SyncState *row,
		const Report *report, const SyncPolicy *policy, TimestampTz now)
{
	if (transition != TRANSITION_NONE)
		transitions[transition] (row, report, policy, now);
	if (begins_to_fail(old, row, policy, now))
		row->troubled_at = now;
	row->updated_at = now;
}

/* The events that a transition makes, a bit for each. */
static int
events_of(const SyncState *old, const SyncState *row, Transition transition,
		  const SyncPolicy *policy, TimestampTz now)
{
	bool		is_gone = syncstate_is_parked_for(row, PARKED_GONE);
	int			events = 0;

	if (old->parked_reason == NULL && row->parked_reason != NULL && !is_gone)
		events |= 1 << EVENT_PARKED;
	if (is_gone && !syncstate_is_parked_for(old, PARKED_GONE))
		events |= 1 << EVENT_GONE;
	if (!is_parked_by_failure(row) && begins_to_fail(old, row, policy, now))
		events |= 1 << EVENT_FAILING;
	if (transition == TRANSITION_COMPLETE && old->troubled_at != NO_TIME)
		events |= 1 << EVENT_RECOVERED;
	if (transition == TRANSITION_COMPLETE && old->last_successful_sync_at == NO_TIME)
		events |= 1 << EVENT_FIRST_SYNC;
	if (transition == TRANSITION_CLEAR_TOKEN && syncstate_has_cursor(old))
		events |= 1 << EVENT_CURSOR_LOST;
	return events;
}

/*
 * How the run in flight ended, by the transition that ended it.  A report that
 * comes without the lease, when the lease of a run that a claim handed out has run
 * out, is not its worker's: that run was lost before.
 */
static Outcome
outcome_of(const SyncState *old, Transition transition, const Report *report,
		   TimestampTz now)
{
	bool		is_its_own = report->has_lease || !old->lease_required ||
		old->lease_expires_at > now;

	switch (transition)
	{
		case TRANSITION_START:	/* by a direct write also of a live lease */
		case TRANSITION_GIVE_UP:
			return old->lease_expires_at <= now ? OUTCOME_LOST : OUTCOME_REVOKED;
		case TRANSITION_COMPLETE:
			return is_its_own ? OUTCOME_COMPLETED : OUTCOME_LOST;
		case TRANSITION_FAIL:
			return is_its_own ? OUTCOME_FAILED : OUTCOME_LOST;
		case TRANSITION_RATE_LIMIT:
			return is_its_own ? OUTCOME_RATE_LIMITED : OUTCOME_LOST;
		case TRANSITION_RELEASE:
			return OUTCOME_RELEASED;
		case TRANSITION_CLEAR_TOKEN:
			return report->has_lease ? OUTCOME_FAILED : OUTCOME_REVOKED;
		default:
			return OUTCOME_REVOKED;
	}
}

static bool
keeps_run(const SyncPolicy *policy, Outcome outcome)
{
	return policy->keep_runs == KEEP_RUNS_ALL ||
		(policy->keep_runs == KEEP_RUNS_FAILURES &&
		 outcome != OUTCOME_COMPLETED && outcome != OUTCOME_RELEASED);
}

/*
 * Tells of the run of a row that ended, if there was one and the policy keeps
 * it.  *row is what became of *old, and may be the same: the row was deleted.
 */
void
syncstate_tell_run(const SyncState *old, SyncState *row, Outcome outcome,
				   const Report *report, const SyncPolicy *policy,
				   TimestampTz now)
{
	News	   *news = &row->news;

	if (old->status != SYNC_SYNCING || !keeps_run(policy, outcome))
		return;
	news->has_run = true;
	news->run.outcome = outcome;
	news->run.lease = old->lease;
	news->run.started_at = old->last_sync_at;
	news->run.ended_at = outcome == OUTCOME_LOST ? old->lease_expires_at : now;
	news->run.was_full = !syncstate_has_cursor(old);
	news->run.was_requested = old->run_requested_at != NO_TIME;
	news->run.items = outcome == OUTCOME_COMPLETED ?
		report->items_synced : old->progress_done;
	news->run.error_message = outcome == OUTCOME_FAILED ? row->error_message :
		outcome == OUTCOME_LOST ? cstring_to_text(LEASE_EXPIRED_MESSAGE) : NULL;
}

/* What is told of a transition of a row, with its write. */
static void
tell(const SyncState *old, SyncState *row, Transition transition,
	 const Report *report, const SyncPolicy *policy, TimestampTz now)
{
	bool		ended = old->status == SYNC_SYNCING &&
		(row->status != SYNC_SYNCING || row->lease != old->lease);
	int			events = events_of(old, row, transition, policy, now);

	/* what another report does to the row afterwards is told with its own run's end */
	if (row->news.events == 0)
	{
		row->news.at = now;
		row->news.lease = old->status == SYNC_SYNCING ? old->lease : NO_COUNT;
	}
	row->news.events |= events;
	if (policy->keep_runs != KEEP_RUNS_NONE && ended)
	{
		syncstate_tell_run(old, row, outcome_of(old, transition, report, now),
						   report, policy, now);
		if (transition == TRANSITION_CLEAR_TOKEN && report->has_lease)
			row->news.run.was_full = true;
	}
}

/* Applies a transition to a row. */
void
syncstate_apply(Transition transition, SyncState *row, const Report *report,
				const SyncPolicy *policy, TimestampTz now)
{
	SyncState	old = *row;

	transit(transition, &old, row, report, policy, now);
	tell(&old, row, transition, report, policy, now);
}

/*
 * An empty cursor is none, and a history id has no leading zeros, so that it
 * is what Gmail would have sent.
 */
static void
tidy_cursor(SyncState *row)
{
	if (row->sync_token != NULL && syncstate_text_bytes(row->sync_token) == 0)
		row->sync_token = NULL;
	if (row->history_id != NULL)
		row->history_id = syncstate_tidy_history_id(row->history_id);
}

/*
 * A run of failures that began unseen began after the last success, or when
 * the row did.
 */
static void
settle_failures(SyncState *row, TimestampTz began)
{
	if (row->failures <= 0)
		row->failing_since = NO_TIME;
	else if (row->failing_since == NO_TIME)
		row->failing_since = row->last_successful_sync_at != NO_TIME ?
			row->last_successful_sync_at : began;
}

/*
 * Fills in what a row that a client inserts lacks.  What is there stays, so
 * that a restored row is as it was dumped.
 */
void
syncstate_fill_in(SyncState *row, const SyncPolicy *policy, TimestampTz now)
{
	tidy_cursor(row);
	if (syncstate_has_cursor(row) && row->token_issued_at == NO_TIME)
		row->token_issued_at = now;
	if (row->due_at == NO_TIME && row->parked_reason == NULL)
		row->due_at = syncstate_first_due(policy, &row->key, now);
	if (row->status == SYNC_SYNCING)
	{
		if (row->lease_expires_at == NO_TIME)
			row->lease_expires_at = now + policy->lease_time;
		if (row->lease == 0)
			row->lease = 1;
		if (row->last_sync_at == NO_TIME)
			row->last_sync_at = now;
		name_full_sync(row);
	}
	if (row->failures > 0)
		settle_failures(row, now);
}

/* What a call would have said instead of a direct write. */
static Report
report_of_write(const SyncState *old, const SyncState *row,
				const Written *written)
{
	Report		report = {
		.key = row->key,
		.updated_min = NO_TIME,
		.error_message = row->error_message,
		.progress_done = NO_COUNT,
		.progress_total = NO_COUNT,
	};

	/* a cursor that is named is given again: the provider has confirmed it */
	if (written->sync_token || !syncstate_same_text(row->sync_token, old->sync_token))
		report.sync_token = row->sync_token;
	if (written->history_id || !syncstate_same_text(row->history_id, old->history_id))
		report.history_id = row->history_id;
	if (written->updated_min || row->updated_min != old->updated_min)
		report.updated_min = row->updated_min;
	if (written->items_synced || row->items_synced != old->items_synced)
		report.items_synced = row->items_synced;
	return report;
}

/* Whether a row had a cursor, and has none any more. */
static bool
lost_cursor(const SyncState *old, const SyncState *row)
{
	return syncstate_has_cursor(old) && !syncstate_has_cursor(row);
}

/*
 * The transition that a direct write amounts to, apart from parking.
 *
 * An UPDATE may name the status without changing it: a row whose lease ran out
 * starts again by 'syncing', but not by a change of another column.
 */
Transition
syncstate_recognize(const SyncState *old, const SyncState *row,
					const Written *written, TimestampTz now)
{
	bool		was_running = old->status == SYNC_SYNCING;
	bool		status_changed = row->status != old->status;
	bool		status_written = written->status || status_changed;
	bool		lease_changed = row->lease > old->lease;
	bool		lease_ended = was_running && old->lease_expires_at <= now;

	switch (row->status)
	{
		case SYNC_SYNCING:
			if (status_changed || lease_changed ||
				(status_written && (lease_ended || lost_cursor(old, row))))
				return TRANSITION_START;
			break;
		case SYNC_IDLE:
			if (was_running)
				return TRANSITION_COMPLETE;
			if (old->status == SYNC_ERROR && old->parked_reason == NULL)
				return TRANSITION_RESUME;
			break;
		case SYNC_ERROR:
			if (status_changed)
				return TRANSITION_FAIL;
			break;
		case SYNC_RATE_LIMITED:
			if (status_written)
				return TRANSITION_RATE_LIMIT;
			break;
		case NUM_STATUSES:
			break;
	}

	/* a run in flight would bring the old cursor back: it is revoked */
	return lost_cursor(old, row) ? TRANSITION_CLEAR_TOKEN : TRANSITION_NONE;
}

/* Whether a direct write parks the row, or takes it back. */
static Transition
recognize_parking(const SyncState *old, const SyncState *row)
{
	bool		due_changed = row->due_at != old->due_at;
	bool		reason_changed = !syncstate_same_text(row->parked_reason,
													  old->parked_reason);

	if (old->parked_reason == NULL)
	{
		if (due_changed && row->due_at == NO_TIME)
			return TRANSITION_PAUSE;
	}
	else if ((reason_changed && row->parked_reason == NULL) ||
			 (due_changed && !reason_changed))
		return TRANSITION_RESUME;
	return TRANSITION_NONE;
}

/*
 * Users may write requested_at: nobody gets ahead by an early time.  A request
 * also ends the times of a clock that was wrong, unless the client gave them.
 */
static void
settle_request(const SyncState *old, SyncState *row, const SyncPolicy *policy,
			   TimestampTz now)
{
	if (row->requested_at == NO_TIME || row->requested_at == old->requested_at)
		return;
	row->requested_at = now;
	if (row->due_at == old->due_at)
		row->due_at = syncstate_settled_due(policy, row, now);
	if (row->lease_expires_at == old->lease_expires_at)
		row->lease_expires_at = syncstate_settled_lease(policy, row, now);
	if (row->limited_until == old->limited_until)
		row->limited_until = syncstate_settled_limit(row, now);
}

/* One of due_at and parked_reason is set: that which the client changed. */
static void
settle_parking(const SyncState *old, SyncState *row, const SyncState *written)
{
	if (row->due_at == NO_TIME && row->parked_reason == NULL)
		park(row, PARKED_PAUSED);
	else if (row->due_at != NO_TIME && row->parked_reason != NULL)
	{
		if (!syncstate_same_text(written->parked_reason, old->parked_reason))
			row->due_at = NO_TIME;
		else
			row->parked_reason = NULL;
	}
}

/*
 * A row that a client parks for a failure, or lets fail, is in trouble, even if
 * the same write completes a sync.
 */
static void
settle_trouble(const SyncState *old, SyncState *row, const SyncState *written,
			   const SyncPolicy *policy, TimestampTz now)
{
	bool		is_parked = old->parked_reason == NULL && is_parked_by_failure(row);

	if (written->troubled_at == old->troubled_at &&
		(is_parked || begins_to_fail(old, row, policy, now)))
		row->troubled_at = now;
}

/* Whether a part of the cursor got another value, and not only lost one. */
static bool
got_cursor(const SyncState *old, const SyncState *row)
{
	return (row->sync_token != NULL &&
			!syncstate_same_text(row->sync_token, old->sync_token)) ||
		(row->history_id != NULL &&
		 !syncstate_same_text(row->history_id, old->history_id)) ||
		(row->updated_min != NO_TIME && row->updated_min != old->updated_min);
}

/* A cursor has an age, counted from when it was last set. */
static void
settle_cursor(const SyncState *old, SyncState *row, TimestampTz now)
{
	if (lost_cursor(old, row))
		drop_cursor(row);
	else if (!syncstate_has_cursor(row))
		row->token_issued_at = NO_TIME;
	else if (row->token_issued_at == NO_TIME ||
			 (row->token_issued_at == old->token_issued_at &&
			  got_cursor(old, row)))
		row->token_issued_at = now;
}

/*
 * Lets a direct write be the transition that it amounts to: each column that
 * the client left alone becomes what the transition makes of it.  The CHECK
 * refuses what cannot be made sense of.
 */
void
syncstate_follow_write(const SyncState *old, SyncState *row,
					   const Written *written, const SyncPolicy *policy,
					   TimestampTz now)
{
	SyncState	as_written;
	SyncState	derived = *old;
	SyncState	before;
	Transition	parking = recognize_parking(old, row);
	Transition	transition;
	Report		report;

	tidy_cursor(row);
	row->lease = Max(row->lease, old->lease);	/* it never goes down */
	as_written = *row;
	report = report_of_write(old, row, written);

	/* what the client says that a transition reads of the row */
	derived.last_sync_at = row->last_sync_at;
	derived.sync_interval = row->sync_interval;
	if (row->lease > old->lease)
		derived.lease = row->lease - 1; /* a start begins under that number */

	/* what ends with the run waits, also where the same write brings the row back */
	if (parking == TRANSITION_RESUME)
		transit(parking, old, &derived, &report, policy, now);
	if (row->failures != old->failures)
		derived.failures = Max(row->failures - 1, 0);	/* without this one */
	transition = syncstate_recognize(old, row, written, now);
	before = derived;
	transit(transition, &before, &derived, &report, policy, now);
	if (parking == TRANSITION_PAUSE)
		transit(parking, &before, &derived, &report, policy, now);

	/* each number is a start, also where a client counts */
	derived.syncs_started = old->syncs_started;
	count_starts(&derived, Max(row->lease, derived.lease) - old->lease);
	syncstate_state_keep(old, &derived, row);

	settle_request(old, row, policy, now);
	settle_parking(old, row, &as_written);
	settle_cursor(old, row, now);
	if (row->status != SYNC_SYNCING)
	{
		row->lease_expires_at = NO_TIME;
		row->lease_required = false;
		row->run_requested_at = NO_TIME;
	}
	else
	{
		if (row->lease_expires_at == NO_TIME)
			row->lease_expires_at = now + policy->lease_time;
		name_full_sync(row);
	}
	settle_failures(row, row->created_at);
	settle_trouble(old, row, &as_written, policy, now);
	row->updated_at = now;
	tell(old, row, transition, &report, policy, now);
}
