/*
 * transitions.c: what holds of the state machine, asked of it without a server
 *
 * Legal rows meet each transition, direct writes and inserts, at ordinary and at
 * extreme times, and under all kinds of policies.  What must hold is listed in
 * cases.h, and told in TAP with the number of cases that were looked at.  It is
 * what doc/states.md and the reference say, in terms of a row before and after.
 */
#include "postgres.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "due.h"

#include "backend.h"
#include "cases.h"

static uint64
history_number(const text *value)
{
	return strtoull(characters(value), NULL, 10);
}

/* A count after one more, which does not overflow. */
static int32
one_more(int32 count)
{
	return count == PG_INT32_MAX ? count : count + 1;
}

/* Whether one more failure was counted, and nothing else. */
static bool
has_failed_once_more(void)
{
	return new.failures == one_more(old.failures) &&
		new.failing_since == (old.failures > 0 ? old.failing_since : now);
}

/* Whether nobody holds the row, and its status and message are these. */
static bool
has_ended(SyncStatus status, const text *message)
{
	return new.status == status && new.lease_expires_at == NO_TIME &&
		same_text(new.error_message, message);
}

static bool
has_ended_with_an_error(SyncStatus status)
{
	return has_ended(status, new.error_message) && new.error_message != NULL;
}

static bool
has_no_progress(void)
{
	return new.page_token == NULL && new.progress_done == NO_COUNT &&
		new.progress_total == NO_COUNT;
}

/* Both limits of parking are reached. */
static bool
limits_are_reached(const SyncState *row)
{
	return row->failures >= policy.max_failures &&
		now - row->failing_since >= policy.park_after;
}

/* The wait after n failures in a row: between half of this and all of it. */
static int64
longest_backoff(int n)
{
	int64		wait = policy.retry_base;

	while (--n > 0 && wait < policy.retry_cap)
		wait *= 2;
	return Min(wait, policy.retry_cap);
}

static bool
waits_by_backoff(int n)
{
	int64		longest = longest_backoff(n);
	int64		wait = new.due_at - now;

	return wait == longest / 2 + (int64) ((longest - longest / 2) * next_draw) &&
		wait >= longest / 2 && wait <= longest;
}

/* From what the life of the cursor is counted, if it ends. */
static TimestampTz
life_begins(const SyncState *row)
{
	if (policy.token_ttl == 0 || !has_cursor(row))
		return NO_TIME;
	if (policy.token_ttl_from == TTL_FROM_FULL && row->last_full_sync_at != NO_TIME)
		return row->last_full_sync_at;
	return row->token_issued_at;
}

/*
 * Whether the planned full sync of the source has come for the row at hand: surely,
 * or perhaps, since each row has its own part of the spread.
 */
static bool
resync_has_come(bool *perhaps)
{
	TimestampTz from = policy.resync_from;
	bool		began_before = old.last_sync_at != NO_TIME && old.last_sync_at < from;
	bool		is_planned = from != NO_TIME && now >= from;

	*perhaps = is_planned && has_cursor(&old) &&
		(old.last_full_sync_at == NO_TIME || old.last_full_sync_at < from);
	if (*perhaps)
		return now - from >= policy.resync_spread;
	return is_planned && began_before &&
		(has_cursor(&old) || old.full_sync_id != NO_COUNT);
}

static void
expect_start(void)
{
	TimestampTz begins = life_begins(&old);
	bool		may_resync;
	bool		is_resync = resync_has_come(&may_resync);

	holds(START, new.status == SYNC_SYNCING && new.last_sync_at == now &&
		  new.requested_at == NO_TIME && new.error_message == NULL &&
		  new.lease_expires_at - now ==
		  (report.lease_time != 0 ? report.lease_time : policy.lease_time));
	holds(START, new.lease == old.lease + 1 &&
		  new.syncs_started == one_more(old.syncs_started));
	holds(START_REQUEST, new.run_requested_at == old.requested_at);
	holds(START_DUE, new.due_at == (is_parked(&old) ? NO_TIME : Min(old.due_at, now)));
	if (!is_parked(&new) && policy.paused_until == NO_TIME &&
		new.limited_until == NO_TIME)
	{
		int64		wait = syncstate_claimable_at(&new, &policy) - new.lease_expires_at;
		int64		longest = longest_backoff(one_more(new.failures));

		if (new.failures == 0 ||
			(new.failures >= policy.max_failures - 1 &&
			 new.lease_expires_at - new.failing_since >= policy.park_after))
			holds(START_DUE, wait == 0);
		else
			holds(START_DUE, wait >= longest / 2 && wait <= longest);
	}
	holds(START_CLAIM, new.lease_required == report.is_claim);
	holds(START_LIMIT, new.limited_until ==
		  (old.limited_until <= now ? NO_TIME : old.limited_until));
	holds(START_FULL, new.full_sync_id ==
		  (has_cursor(&new) ? NO_COUNT :
		   has_cursor(&old) || old.full_sync_id == NO_COUNT || is_resync ? new.lease :
		   old.full_sync_id));
	holds(START_FAILURE, old.status == SYNC_SYNCING ?
		  has_failed_once_more() : !changes(FAILURES));

	/* counted from a full sync, each row gives it up at its own time before */
	if (is_resync)
		holds(START_RESYNC, !has_cursor(&new) && has_no_progress());
	else if (may_resync)
		holds(START_RESYNC, has_cursor(&new) || has_no_progress());
	else if (begins == NO_TIME)
		holds(START_DEAD, !changes(CURSOR));
	else if (policy.token_ttl_from == TTL_FROM_TOKEN)
		holds(START_DEAD, has_cursor(&new) == (now - begins <= policy.token_ttl));
	else if (now - begins <= policy.token_ttl * 0.80)
		holds(START_DEAD, has_cursor(&new));
	else if (now - begins > policy.token_ttl * 0.85)
		holds(START_DEAD, !has_cursor(&new));
	if (has_cursor(&new))
		holds(START_DEAD, !changes(CURSOR | PROGRESS | COLUMN(token_issued_at)));

	if (old.status == SYNC_SYNCING)
		holds(WOULD_PARK, limits_are_reached(&new) ==
			  syncstate_would_park(&old, &policy, now));
	else
		holds(WOULD_PARK, !syncstate_would_park(&old, &policy, now));
}

static void
expect_give_up(void)
{
	holds(GIVE_UP, has_failed_once_more() && has_ended_with_an_error(SYNC_ERROR) &&
		  is_text(new.parked_reason, "failures"));
}

/* Between which intervals a row is polled that has no push. */
static void
ordinary_intervals(int64 *shortest, int64 *longest)
{
	*shortest = *longest = policy.sync_interval;
	if (new.sync_interval != NULL)
		*shortest = *longest = syncstate_interval_usecs(new.sync_interval);
	else if (policy.daily_budget != 0)
	{
		*shortest = policy.min_interval;
		*longest = policy.max_interval;
	}
}

static void
expect_trust(void)
{
	int64		shortest;
	int64		longest;
	TimestampTz until = Max(report.push_until, now);

	ordinary_intervals(&shortest, &longest);
	holds(TRUST_PUSH, new.push_until == report.push_until);
	holds(TRUST_BEGINS, new.requested_at ==
		  (report.push_begins && old.status == SYNC_SYNCING &&
		   old.requested_at == NO_TIME ? now : old.requested_at));
	if (old.status == SYNC_IDLE && !is_parked(&old))
		holds(TRUST_PUSH, new.due_at <= until + longest &&
			  (new.due_at == old.due_at ||
			   (new.due_at < old.due_at && new.due_at >= until)));
	else
		holds(TRUST_PUSH, new.due_at == old.due_at);
}

/* When a completed row is due. */
static void
expect_due(void)
{
	int64		shortest;
	int64		longest;
	TimestampTz latest;
	bool		has_push = policy.push_renew_before != 0 && new.push_until > now;
	TimestampTz start = old.last_sync_at == NO_TIME || old.last_sync_at > now ?
		now : old.last_sync_at;
	TimestampTz begins = life_begins(&new);
	TimestampTz last_visit = begins + (int64) (policy.token_ttl * 0.80);
	TimestampTz last_full_sync = begins + (int64) (policy.token_ttl * 0.85);
	int64		wait = new.due_at - now;

	ordinary_intervals(&shortest, &longest);
	latest = Max(start + longest, now + longest / 10);
	if (has_push)
		latest = Max(latest, Min(start + policy.push_interval, new.push_until + longest));

	holds(COMPLETE_DUE, wait > 0);
	holds(COMPLETE_DUE, new.due_at <= latest);
	if (has_push && begins == NO_TIME)
		holds(COMPLETE_PUSH, new.due_at >=
			  Min(start + policy.push_interval -
				  (int64) (policy.push_interval * policy.jitter) - 1, new.push_until));
	if (begins != NO_TIME && last_visit > now)
		holds(COMPLETE_DUE, new.due_at <= last_visit);
	else if (begins != NO_TIME && begins + policy.token_ttl >= now &&
			 policy.token_ttl_from == TTL_FROM_TOKEN)
		holds(COMPLETE_DUE, new.due_at <= begins + policy.token_ttl + 1);
	else if (begins == NO_TIME || last_full_sync < now - 1)
	{
		/* the interval, less half to all of the jitter */
		shortest -= (int64) (shortest * policy.jitter) + 1;
		longest -= (int64) (longest * policy.jitter / 2) - 1;
		holds(COMPLETE_DUE, wait >= shortest / 10 && wait >= start + shortest - now);
		if (!has_push)
			holds(COMPLETE_DUE, wait <= Max(start + longest - now, longest / 10 * 2));
	}
}

/* The cursor after a completion. */
static void
expect_cursor(void)
{
	text	   *token = report.sync_token;
	text	   *history_id = report.history_id;
	TimestampTz updated_min = Max(old.updated_min, report.updated_min);
	bool		is_confirmed = report.updated_min != NO_TIME &&
		report.updated_min == updated_min;

	if (token == NULL || is_text(token, ""))
		token = old.sync_token;
	else
		is_confirmed = true;
	if (history_id == NULL ||
		(old.history_id != NULL &&
		 history_number(history_id) < history_number(old.history_id)))
		history_id = old.history_id;
	else
		is_confirmed = true;

	holds(COMPLETE_CURSOR, same_text(new.sync_token, token) &&
		  same_text(new.history_id, history_id) && new.updated_min == updated_min);
	holds(COMPLETE_CURSOR, new.token_issued_at ==
		  (is_confirmed ? now : old.token_issued_at));
}

/* The last 3 days or the last 12 changes are known, whichever is less. */
static void
expect_learning(void)
{
	double		changes_before = Max(old.changes_seen, 0);
	double		changes_now = Min(report.items_synced, 3);

	holds(COMPLETE_LEARNS, new.changes_seen >= 0 && new.changes_seen <= 12 &&
		  new.changes_seen <= changes_before + changes_now &&
		  (changes_now == 0 || new.changes_seen > 0));
	if (old.last_successful_sync_at >= now && changes_before + changes_now <= 12)
		holds(COMPLETE_LEARNS, new.changes_seen == changes_before + changes_now &&
			  new.seconds_watched == Max(old.seconds_watched, 0));
	if (old.last_successful_sync_at < now - 30 * USECS_PER_DAY)
		holds(COMPLETE_LEARNS, new.seconds_watched < 10 * SECS_PER_DAY);
}

static void
expect_complete(void)
{
	bool		was_full = !has_cursor(&old);

	holds(COMPLETE, has_ended(SYNC_IDLE, NULL) && has_no_progress() &&
		  new.failures == 0 && new.token_losses == 0 &&
		  new.full_sync_id == NO_COUNT &&
		  new.items_synced == report.items_synced &&
		  new.last_successful_sync_at == now);
	holds(COMPLETE_FULL, new.last_full_sync_at ==
		  (was_full ? now : old.last_full_sync_at));
	expect_cursor();
	if (was_full || old.last_successful_sync_at == NO_TIME)
		holds(COMPLETE_LEARNS, !changes(COLUMN(changes_seen) | COLUMN(seconds_watched)));
	else
		expect_learning();
	if (is_parked(&old))
		holds(COMPLETE, is_parked(&new));
	else
		expect_due();
}

/* A failure does not end a pause, nor bring back what is gone. */
static bool
keeps_reason(const SyncState *row)
{
	return is_text(row->parked_reason, "paused") ||
		is_text(row->parked_reason, "gone");
}

static void
expect_fail(void)
{
	bool		is_dead = syncstate_grant_is_dead(&new, &report, &policy);

	holds(FAIL_GRANT, !is_dead ||
		  (report.kind == FAILURE_AUTH && is_parked(&new)));
	holds(FAIL, has_failed_once_more() && has_ended(SYNC_ERROR, report.error_message));
	if (keeps_reason(&old))
		holds(FAIL_PARKS, same_text(new.parked_reason, old.parked_reason));
	else if (report.kind == FAILURE_AUTH && new.failures >= policy.auth_failures)
		holds(FAIL_PARKS, is_text(new.parked_reason, "auth"));
	else if (limits_are_reached(&new))
		holds(FAIL_PARKS, is_text(new.parked_reason, "failures"));
	else if (is_parked(&old))
		holds(FAIL_PARKS, same_text(new.parked_reason, old.parked_reason));
	else if (report.kind != FAILURE_TRANSIENT)
		holds(FAIL_WAITS, new.due_at - now == policy.retry_cap);
	else
		holds(FAIL_WAITS, waits_by_backoff(new.failures));
}

static void
expect_rate_limit(void)
{
	int64		wait = report.retry_after != 0 ?
		report.retry_after : policy.rate_limit_wait;
	TimestampTz earliest = now + wait;
	TimestampTz latest = now + wait + wait / 10;

	holds(RATE_LIMIT, has_ended_with_an_error(SYNC_RATE_LIMITED));
	holds(RATE_LIMIT, syncstate_limit_wait(&report, &policy) == wait);
	if (old.status == SYNC_RATE_LIMITED)
	{
		earliest = Max(earliest, old.due_at);
		latest = Max(latest, old.due_at);
	}
	holds(RATE_LIMIT_SCOPE, new.limited_until ==
		  (report.scope == SCOPE_ACCOUNT ?
		   Max(old.limited_until, now + wait) : old.limited_until));
	if (is_parked(&old))
		holds(RATE_LIMIT, is_parked(&new));
	else
		holds(RATE_LIMIT, new.due_at >= earliest && new.due_at <= latest);
}

static void
expect_clear_token(void)
{
	SyncStatus	status = old.status == SYNC_SYNCING ? SYNC_IDLE : old.status;

	holds(CLEAR_TOKEN, !has_cursor(&new) &&
		  new.token_losses == one_more(old.token_losses));
	if (new.token_losses >= 3)
	{
		holds(CLEAR_TOKEN, has_ended_with_an_error(SYNC_ERROR));
		if (keeps_reason(&old))
			holds(CLEAR_TOKEN, same_text(new.parked_reason, old.parked_reason));
		else if (new.token_losses >= 10)
			holds(CLEAR_TOKEN, is_text(new.parked_reason, "token_loop"));
		else if (is_parked(&old))
			holds(CLEAR_TOKEN, same_text(new.parked_reason, old.parked_reason));
		else
			holds(CLEAR_TOKEN, waits_by_backoff(new.token_losses));
	}
	else if (report.has_lease)
		holds(CLEAR_TOKEN_RUN, !changes(RUN | PARKING) && new.full_sync_id == new.lease);
	else
		holds(CLEAR_TOKEN_RUN, has_ended(status, old.error_message) &&
			  new.due_at == (is_parked(&old) ? NO_TIME : now));
}

static void
expect_checkpoint(void)
{
	holds(CHECKPOINT, same_text(new.page_token, report.page_token != NULL ?
								report.page_token : old.page_token));
	holds(CHECKPOINT, new.progress_done == (report.progress_done != NO_COUNT ?
											report.progress_done : old.progress_done));
	holds(CHECKPOINT, new.progress_total == (report.progress_total != NO_COUNT ?
											 report.progress_total : old.progress_total));
	holds(CHECKPOINT, new.lease_expires_at ==
		  Max(old.lease_expires_at, now + policy.lease_time));
	if (same_text(old.page_token, new.page_token))
		holds(CHECKPOINT, !changes(FAILURES));
	else
		holds(CHECKPOINT, new.failures == 0 && new.failing_since == NO_TIME);
}

/* Whether a row is resumed that was parked before, or was not. */
static bool
is_resumed(bool was_parked)
{
	TimestampTz due = was_parked ? now + report.delay : old.due_at;
	TimestampTz lease_end = old.lease_expires_at;
	TimestampTz limit_end = settled_limit(&old);

	if (due > latest_due(&old))
		due = now;
	if (lease_end > now + USECS_PER_DAY)
		lease_end = now + policy.lease_time;
	return new.due_at == due && new.limited_until == limit_end &&
		new.failures == 0 && new.token_losses == 0 &&
		(old.status == SYNC_ERROR ? has_ended(SYNC_IDLE, NULL) :
		 !changes(RUN & ~COLUMN(lease_expires_at)) && new.lease_expires_at == lease_end);
}

static bool
is_paused(void)
{
	return is_text(old.parked_reason, "paused");
}

static void
expect_own(void)
{
	switch (transition)
	{
		case TRANSITION_NONE:
			holds(NOTHING, new.updated_at == now);
			break;
		case TRANSITION_START:
			expect_start();
			break;
		case TRANSITION_GIVE_UP:
			expect_give_up();
			break;
		case TRANSITION_COMPLETE:
			expect_complete();
			break;
		case TRANSITION_FAIL:
			expect_fail();
			break;
		case TRANSITION_RATE_LIMIT:
			expect_rate_limit();
			break;
		case TRANSITION_CLEAR_TOKEN:
			expect_clear_token();
			break;
		case TRANSITION_RENEW:
			holds(RENEW, new.lease_expires_at - now ==
				  (report.lease_time != 0 ? report.lease_time : policy.lease_time));
			break;
		case TRANSITION_CHECKPOINT:
			expect_checkpoint();
			break;
		case TRANSITION_RELEASE:
			holds(RELEASE, has_ended(SYNC_IDLE, NULL) && new.due_at ==
				  (is_parked(&old) ? NO_TIME : now + report.delay));
			break;
		case TRANSITION_CONNECT:
			holds(CONNECT, is_resumed(is_parked(&old) && !is_paused()) &&
				  new.requested_at == (old.requested_at != NO_TIME ?
									   Min(old.requested_at, now) : now));
			break;
		case TRANSITION_PAUSE:
			holds(PAUSE, is_text(new.parked_reason, "paused"));
			break;
		case TRANSITION_RESUME:
			holds(RESUME, is_resumed(is_parked(&old)) &&
				  new.requested_at == Min(old.requested_at, now));
			break;
		case TRANSITION_LIMIT:
			holds(LIMIT, new.limited_until ==
				  Max(old.limited_until, report.limited_until));
			break;
		case TRANSITION_REVOKE:
			holds(REVOKE, is_parked(&old) ? !changes(PARKING) :
				  is_text(new.parked_reason, "auth"));
			break;
		case TRANSITION_LEAVE:
			holds(LEAVE, is_text(new.parked_reason, "gone"));
			break;
		case TRANSITION_TRUST_PUSH:
			expect_trust();
			break;
		case NUM_TRANSITIONS:
			break;
	}
}

/* Whether a transition may take a row out of the lanes. */
static bool
may_park(void)
{
	return transition == TRANSITION_PAUSE || transition == TRANSITION_GIVE_UP ||
		transition == TRANSITION_FAIL || transition == TRANSITION_CLEAR_TOKEN ||
		transition == TRANSITION_REVOKE || transition == TRANSITION_LEAVE;
}

static bool
takes_back(void)
{
	return transition == TRANSITION_RESUME ||
		(transition == TRANSITION_CONNECT && !is_paused());
}

/* Whether a transition may lose the cursor. */
static bool
may_drop(void)
{
	bool		may_resync;

	if (transition != TRANSITION_START)
		return transition == TRANSITION_CLEAR_TOKEN;
	return resync_has_come(&may_resync) || may_resync ||
		life_begins(&old) != NO_TIME;
}

/* What holds of the cursor after every transition. */
static void
expect_common_cursor(void)
{
	if (has_cursor(&old) && !may_drop())
	{
		holds(CURSOR_KEPT, (old.sync_token == NULL || new.sync_token != NULL) &&
			  (old.history_id == NULL || new.history_id != NULL) &&
			  (old.updated_min == NO_TIME || new.updated_min != NO_TIME));
		holds(CURSOR_KEPT, transition == TRANSITION_COMPLETE ||
			  !changes(CURSOR | COLUMN(token_issued_at)));
	}
	if (old.history_id != NULL && new.history_id != NULL)
		holds(CURSOR_FORWARD,
			  history_number(new.history_id) >= history_number(old.history_id));
	if (new.updated_min != NO_TIME)
		holds(CURSOR_FORWARD, new.updated_min >= old.updated_min);
	if (has_cursor(&old) && !has_cursor(&new))
		holds(CURSOR_WHOLE, new.token_issued_at == NO_TIME && has_no_progress());
}

/* What holds of leases after every transition. */
static void
expect_common_lease(void)
{
	bool		is_running = new.status == SYNC_SYNCING;
	bool		has_ended = old.status == SYNC_SYNCING && !is_running;
	bool		is_start = transition == TRANSITION_START;

	holds(LEASE_NUMBER, new.lease == old.lease + is_start);
	holds(FENCE_HELD, syncstate_lease_is_held(&new, new.lease) == is_running &&
		  !syncstate_lease_is_held(&new, new.lease - 1) &&
		  !syncstate_lease_is_held(&new, new.lease + 1));
	holds(FENCE_STALE, syncstate_lease_is_stale(&new, new.lease) != is_running &&
		  syncstate_lease_is_stale(&new, new.lease - 1) &&
		  !syncstate_lease_is_stale(&new, new.lease + 1));
	if (has_ended || is_start)
		holds(FENCE_STALE, syncstate_lease_is_stale(&new, old.lease));
	holds(FENCE_CLAIMED, syncstate_lease_is_missing(transition, &old, &report, now) ==
		  (old.lease_required && !report.has_lease && old.lease_expires_at > now &&
		   (transition == TRANSITION_COMPLETE || transition == TRANSITION_FAIL ||
			transition == TRANSITION_RATE_LIMIT ||
			transition == TRANSITION_CHECKPOINT)));
}

static bool
is_parked_by_failure(const SyncState *row)
{
	return is_parked(row) && !keeps_reason(row);
}

/* Whether one more failure has come half as far as to park the row, and was not told. */
static bool
is_half_way(void)
{
	return new.failures > old.failures &&
		new.failures * 2.0 >= policy.max_failures &&
		now - new.failing_since >= policy.park_after / 2 &&
		(old.troubled_at == NO_TIME || old.troubled_at <= new.failing_since);
}

/* Whether a failure parks the row, or would if it were not paused, or gone. */
static bool
is_parking_failure(void)
{
	switch (transition)
	{
		case TRANSITION_GIVE_UP:
			return true;
		case TRANSITION_FAIL:
			return limits_are_reached(&new) ||
				(report.kind == FAILURE_AUTH && new.failures >= policy.auth_failures);
		case TRANSITION_CLEAR_TOKEN:
			return new.token_losses >= 10;
		default:
			return false;
	}
}

static bool
is_told(Event event)
{
	return (new.news.events & (1 << event)) != 0;
}

/* The events of every transition. */
static void
expect_events(void)
{
	bool		is_gone = is_text(new.parked_reason, "gone");
	bool		is_completion = transition == TRANSITION_COMPLETE;

	holds(TROUBLE, new.troubled_at == (is_completion ? NO_TIME :
									   is_parking_failure() || is_half_way() ? now :
									   old.troubled_at));
	holds(TOLD_PARKED, is_told(EVENT_PARKED) ==
		  (!is_parked(&old) && is_parked(&new) && !is_gone));
	holds(TOLD_PARKED, is_told(EVENT_GONE) ==
		  (is_gone && !is_text(old.parked_reason, "gone")));
	holds(TOLD_FAILING, is_told(EVENT_FAILING) ==
		  (is_half_way() && !is_parked_by_failure(&new)));
	holds(TOLD_RECOVERED, is_told(EVENT_RECOVERED) ==
		  (is_completion && old.troubled_at != NO_TIME));
	holds(TOLD_FIRST, is_told(EVENT_FIRST_SYNC) ==
		  (is_completion && old.last_successful_sync_at == NO_TIME));
	holds(TOLD_LOST, is_told(EVENT_CURSOR_LOST) ==
		  (transition == TRANSITION_CLEAR_TOKEN && has_cursor(&old)));
	holds(TOLD_NOTHING, !is_told(EVENT_SWEEP_WITHHELD) &&
		  !is_told(EVENT_SOURCE_LIMITED) && !is_told(EVENT_SOURCE_RESUMED) &&
		  (new.news.events == 0 ||
		   (new.news.at == now && new.news.lease ==
			(old.status == SYNC_SYNCING ? old.lease : NO_COUNT))));
}

/* How the run in flight ended. */
static Outcome
expected_outcome(void)
{
	bool		is_late = old.lease_required && !report.has_lease &&
		old.lease_expires_at <= now;

	if (transition == TRANSITION_START || transition == TRANSITION_GIVE_UP)
		return old.lease_expires_at <= now ? OUTCOME_LOST : OUTCOME_REVOKED;
	if (transition == TRANSITION_RELEASE)
		return OUTCOME_RELEASED;
	if (transition == TRANSITION_CLEAR_TOKEN)
		return report.has_lease ? OUTCOME_FAILED : OUTCOME_REVOKED;
	if (is_late)
		return OUTCOME_LOST;
	return transition == TRANSITION_COMPLETE ? OUTCOME_COMPLETED :
		transition == TRANSITION_FAIL ? OUTCOME_FAILED : OUTCOME_RATE_LIMITED;
}

/* The run that a transition ended. */
static void
expect_run(void)
{
	const Run  *run = &new.news.run;
	bool		has_ended = old.status == SYNC_SYNCING &&
		(new.status != SYNC_SYNCING || new.lease != old.lease);
	Outcome		outcome = has_ended ? expected_outcome() : NUM_OUTCOMES;
	bool		is_good = outcome == OUTCOME_COMPLETED || outcome == OUTCOME_RELEASED;

	holds(RUN_TOLD, new.news.has_run ==
		  (has_ended && policy.keep_runs != KEEP_RUNS_NONE &&
		   (policy.keep_runs == KEEP_RUNS_ALL || !is_good)));
	if (!new.news.has_run)
		return;
	holds(RUN_OUTCOME, run->outcome == outcome);
	holds(RUN_FACTS, run->lease == old.lease && run->started_at == old.last_sync_at &&
		  run->ended_at == (outcome == OUTCOME_LOST ? old.lease_expires_at : now) &&
		  run->was_full == (!has_cursor(&old) ||
							(transition == TRANSITION_CLEAR_TOKEN && report.has_lease)) &&
		  run->was_requested == (old.run_requested_at != NO_TIME) &&
		  run->items == (outcome == OUTCOME_COMPLETED ?
						 report.items_synced : old.progress_done));
	holds(RUN_FACTS, outcome == OUTCOME_FAILED ?
		  same_text(run->error_message, new.error_message) :
		  (run->error_message != NULL) == (outcome == OUTCOME_LOST));
}

/* What holds after every transition. */
static void
expect_common(void)
{
	TimestampTz at = syncstate_claimable_at(&new, &policy);
	bool		is_ever = at < DT_NOEND;
	SyncState	unlimited = new;

	unlimited.limited_until = NO_TIME;
	holds(LIMITED, at == Max(syncstate_claimable_at(&unlimited, &policy),
							 new.limited_until));
	holds(LEGAL, is_legal(&new));
	holds(COLUMNS, !changes(~own_columns[transition] & ~COLUMN(updated_at)) &&
		  new.updated_at == now);
	holds(LANES, is_parked(&old) ? is_parked(&new) != takes_back() :
		  may_park() || !is_parked(&new));
	holds(CLAIMABLE, is_ever != is_parked(&new));
	expect_common_cursor();
	expect_common_lease();
	expect_events();
	expect_run();
}

static void
try_transition(int number)
{
	draw_case(number);
	draw_report();
	if (!is_possible())
		return;
	is_write = false;
	syncstate_apply(transition, &new, &report, &policy, now);
	expect_common();
	expect_own();
}

/* Undefined behaviour ends the program. */
static void
bail_out(int number)
{
	printf("Bail out! signal %d\n", number);
	tell_case();
	fflush(stdout);
	_exit(1);
}

int
main(void)
{
	signal(SIGILL, bail_out);
	signal(SIGTRAP, bail_out);
	signal(SIGSEGV, bail_out);
	signal(SIGFPE, bail_out);
	keep_memory();

	for (int number = 0; number < num_rows; number++)
	{
		for (int round = 0; round < 4; round++)
		{
			for (transition = 0; transition < NUM_TRANSITIONS; transition++)
				try_transition(number);
		}
		for (int round = 0; round < 20; round++)
			try_write(number);
		for (int round = 0; round < 3; round++)
			try_calls(number);
		try_nonsense(number);
		try_insert(number);
		if (number % 8 == 0)
			try_life(number);
	}

	return tell() ? 0 : 1;
}
