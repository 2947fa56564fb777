/*
 * cases.c: what the state machine is asked, and how its answers are judged
 *
 * Rows, arguments and policies are drawn, each time the same ones, but for what
 * decides most of what becomes of a row: of that, all combinations are tried.
 */
#include "postgres.h"

#include <stdio.h>

#include "backend.h"
#include "cases.h"

SyncState	old;
SyncState	new;
Transition	transition;
Report		report;
SyncPolicy	policy;
TimestampTz now;
bool		is_write;
SyncState	written;
Written		names;

/* What each transition may change, beside updated_at. */
const uint64 own_columns[NUM_TRANSITIONS] = {
	[TRANSITION_NONE] = 0,
	[TRANSITION_START] = RUN | FAILURES | CURSOR | PROGRESS |
	COLUMN(token_issued_at) | COLUMN(lease) | COLUMN(last_sync_at) |
	COLUMN(requested_at) | COLUMN(due_at) | COLUMN(full_sync_id) |
	COLUMN(syncs_started) | COLUMN(limited_until) | COLUMN(troubled_at),
	[TRANSITION_GIVE_UP] = RUN | FAILURES | PARKING | COLUMN(troubled_at),
	[TRANSITION_COMPLETE] = RUN | FAILURES | CURSOR | PROGRESS |
	COLUMN(token_issued_at) | COLUMN(token_losses) | COLUMN(last_full_sync_at) |
	COLUMN(last_successful_sync_at) | COLUMN(items_synced) |
	COLUMN(changes_seen) | COLUMN(seconds_watched) | COLUMN(due_at) |
	COLUMN(full_sync_id) | COLUMN(troubled_at),
	[TRANSITION_FAIL] = RUN | FAILURES | PARKING | COLUMN(troubled_at),
	[TRANSITION_RATE_LIMIT] = RUN | COLUMN(due_at) | COLUMN(limited_until),
	[TRANSITION_CLEAR_TOKEN] = RUN | CURSOR | PROGRESS | COLUMN(token_issued_at) |
	COLUMN(token_losses) | COLUMN(full_sync_id) | PARKING | COLUMN(troubled_at),
	[TRANSITION_RENEW] = COLUMN(lease_expires_at),
	[TRANSITION_CHECKPOINT] = PROGRESS | FAILURES | COLUMN(lease_expires_at),
	[TRANSITION_RELEASE] = RUN | COLUMN(due_at),
	[TRANSITION_CONNECT] = RUN | FAILURES | PARKING | COLUMN(token_losses) |
	COLUMN(requested_at) | COLUMN(limited_until),
	[TRANSITION_PAUSE] = PARKING,
	[TRANSITION_RESUME] = RUN | FAILURES | PARKING | COLUMN(token_losses) |
	COLUMN(requested_at) | COLUMN(limited_until),
	[TRANSITION_LIMIT] = COLUMN(limited_until),
	[TRANSITION_REVOKE] = PARKING,
	[TRANSITION_LEAVE] = PARKING,
	[TRANSITION_TRUST_PUSH] = COLUMN(push_until) | COLUMN(due_at) | COLUMN(requested_at),
};

/*
 * Columns
 */

bool
same_text(const text *a, const text *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return VARSIZE_ANY_EXHDR(a) == VARSIZE_ANY_EXHDR(b) &&
		memcmp(VARDATA_ANY(a), VARDATA_ANY(b), VARSIZE_ANY_EXHDR(a)) == 0;
}

bool
is_text(const text *a, const char *b)
{
	return a != NULL && VARSIZE_ANY_EXHDR(a) == strlen(b) &&
		memcmp(VARDATA_ANY(a), b, strlen(b)) == 0;
}

static bool
same_interval(const Interval *a, const Interval *b)
{
	if (a == NULL || b == NULL)
		return a == b;
	return a->month == b->month && a->day == b->day && a->time == b->time;
}

#define SAME_UUID(a, b)			(memcmp(&(a), &(b), UUID_LEN) == 0)
#define SAME_SOURCE(a, b)		((a) == (b))
#define SAME_NAME(a, b)			same_text(a, b)
#define SAME_STATUS(a, b)		((a) == (b))
#define SAME_TOKEN(a, b)		same_text(a, b)
#define SAME_HISTORY_ID(a, b)	same_text(a, b)
#define SAME_REASON(a, b)		same_text(a, b)
#define SAME_MESSAGE(a, b)		same_text(a, b)
#define SAME_TIME(a, b)			((a) == (b))
#define SAME_INTERVAL(a, b)		same_interval(a, b)
#define SAME_NUMBER(a, b)		((a) == (b))
#define SAME_COUNT(a, b)		((a) == (b))
#define SAME_INTEGER(a, b)		((a) == (b))
#define SAME_TALLY(a, b)		((a) == (b))
#define SAME_AMOUNT(a, b)		((a) == (b))
#define SAME_FLAG(a, b)			((a) == (b))

/* The columns in which two rows differ. */
uint64
difference(const SyncState *a, const SyncState *b)
{
	uint64		columns = 0;

#define DIFFER(name, kind, writer) \
	if (!SAME_##kind(a->name, b->name)) \
		columns |= COLUMN(name);
#define KEYS_DIFFER(name, kind, writer) \
	if (!SAME_##kind(a->key.name, b->key.name)) \
		columns |= COLUMN(name);

	SYNC_KEY_COLUMNS(KEYS_DIFFER)
	SYNC_DATA_COLUMNS(DIFFER)
	return columns;
}

/* Whether the state machine changed any of some columns. */
bool
changes(uint64 columns)
{
	return (difference(&old, &new) & columns) != 0;
}

/*
 * Telling
 */

/* Failures of a property that are told in full. */
#define FAILURES_TOLD	2

static long looked_at[NUM_PROPERTIES];
static long failed[NUM_PROPERTIES];

static const char *const property_texts[] = {
#define TEXT(id, text) text,
	PROPERTIES(TEXT)
};

static const char *const transition_names[NUM_TRANSITIONS] = {
	[TRANSITION_NONE] = "none",
	[TRANSITION_START] = "start",
	[TRANSITION_GIVE_UP] = "give up",
	[TRANSITION_COMPLETE] = "complete",
	[TRANSITION_FAIL] = "fail",
	[TRANSITION_RATE_LIMIT] = "rate limit",
	[TRANSITION_CLEAR_TOKEN] = "clear token",
	[TRANSITION_RENEW] = "renew",
	[TRANSITION_CHECKPOINT] = "checkpoint",
	[TRANSITION_RELEASE] = "release",
	[TRANSITION_CONNECT] = "connect",
	[TRANSITION_PAUSE] = "pause",
	[TRANSITION_RESUME] = "resume",
	[TRANSITION_LIMIT] = "limit",
	[TRANSITION_REVOKE] = "revoke",
	[TRANSITION_LEAVE] = "leave",
	[TRANSITION_TRUST_PUSH] = "trust push",
};

static const char *const status_names[NUM_STATUSES] = {
#define STATUS_NAME(c_name, sql_name) #sql_name,
	SYNC_STATUSES(STATUS_NAME)
};

static void
print_text(const text *value)
{
	if (value == NULL)
		printf("null");
	else if (VARSIZE_ANY_EXHDR(value) > 40)
		printf("'...' (%d bytes)", (int) VARSIZE_ANY_EXHDR(value));
	else
		printf("'%.*s'", (int) VARSIZE_ANY_EXHDR(value), VARDATA_ANY(value));
}

static void
print_time(TimestampTz time)
{
	if (time == NO_TIME)
		printf("null");
	else if (time == now)
		printf("T");
	else if (time == MIN_TIME)
		printf("the first time");
	else if (time == MAX_TIME - 1)
		printf("the last time");
	else
		printf("T %+.6f s", (double) (time - now) / USECS_PER_SEC);
}

static void
print_interval(const Interval *interval)
{
	if (interval == NULL)
		printf("null");
	else
		printf("%d days %.6f s", interval->day,
			   (double) interval->time / USECS_PER_SEC);
}

#define PRINT_STATUS(value)		printf("%s", status_names[value])
#define PRINT_TOKEN(value)		print_text(value)
#define PRINT_HISTORY_ID(value)	print_text(value)
#define PRINT_REASON(value)		print_text(value)
#define PRINT_MESSAGE(value)	print_text(value)
#define PRINT_TIME(value)		print_time(value)
#define PRINT_INTERVAL(value)	print_interval(value)
#define PRINT_NUMBER(value)		printf("%lld", (long long) (value))
#define PRINT_COUNT(value)		printf("%lld", (long long) (value))
#define PRINT_INTEGER(value)	printf("%d", value)
#define PRINT_TALLY(value)		PRINT_INTEGER(value)
#define PRINT_AMOUNT(value)		printf("%g", value)
#define PRINT_FLAG(value)		printf("%d", value)

static void
print_row(const char *title, const SyncState *row, uint64 columns)
{
	printf("# %s:", title);
#define PRINT(name, kind, writer) \
	if (columns & COLUMN(name)) \
	{ \
		printf(" " #name "="); \
		PRINT_##kind(row->name); \
		printf(";"); \
	}
	SYNC_DATA_COLUMNS(PRINT)
	printf("\n");
}

static void
print_policy(void)
{
	printf("# policy:");
#define PRINT_VALUE(value)		printf("%.15g", (double) (value))
#define PRINT_DURATION			PRINT_VALUE
#define PRINT_DURATION_OR_OFF	PRINT_VALUE
#define PRINT_COUNT_OR_OFF		PRINT_VALUE
#define PRINT_TTL_FROM			PRINT_VALUE
#define PRINT_FRACTION			PRINT_VALUE
#define PRINT_PAUSE				PRINT_TIME
#define PRINT_TIME_OR_OFF		PRINT_TIME
#define PRINT_KEEP_RUNS			PRINT_VALUE
#define PRINT_LABEL(value)		printf("%s", NameStr(value))
#define PRINT_SETTING(name, kind, least, most, builtin) \
	printf(" " #name "="); \
	PRINT_##kind(policy.name); \
	printf(";");
	SYNC_POLICY_SETTINGS(PRINT_SETTING)
	printf(" multiplier=%g; mean_rate=%g\n", policy.multiplier, policy.mean_rate);
}

void
tell_case(void)
{
	printf("# %s at %lld, draw %g\n",
		   is_write ? "a direct write" : transition_names[transition],
		   (long long) now, next_draw);
	print_row("before", &old, ~UINT64CONST(0));
	if (is_write)
	{
		print_row("written", &written, difference(&old, &written));
		printf("# names: status=%d; items_synced=%d; sync_token=%d; history_id=%d; updated_min=%d\n",
			   names.status, names.items_synced,
			   names.sync_token, names.history_id, names.updated_min);
	}
	else
	{
		printf("# report: has_lease=%d; is_claim=%d; delay=%lld; lease_time=%lld; items_synced=%lld; kind=%s; ",
			   report.has_lease, report.is_claim, (long long) report.delay, (long long) report.lease_time,
			   (long long) report.items_synced,
			   syncstate_failure_kinds[report.kind]);
		printf("scope=%s; limited_until=", syncstate_scopes[report.scope]);
		print_time(report.limited_until);
		printf("; push_until=");
		print_time(report.push_until);
		printf("; push_begins=%d", report.push_begins);
		printf("; retry_after=%lld; progress_done=%lld; progress_total=%lld; updated_min=",
			   (long long) report.retry_after,
			   (long long) report.progress_done,
			   (long long) report.progress_total);
		print_time(report.updated_min);
		printf("; sync_token=");
		print_text(report.sync_token);
		printf("; history_id=");
		print_text(report.history_id);
		printf("; error_message=");
		print_text(report.error_message);
		printf("; page_token=");
		print_text(report.page_token);
		printf("\n");
	}
	print_policy();
	print_row("after", &new, difference(&old, &new));
}

void
holds(Property property, bool condition)
{
	looked_at[property]++;
	if (condition)
		return;
	if (failed[property]++ < FAILURES_TOLD)
	{
		printf("# does not hold: %s\n", property_texts[property]);
		tell_case();
	}
}

/* Tells what holds and what does not; whether all does. */
bool
tell(void)
{
	bool		all_hold = true;

	for (int i = 0; i < NUM_PROPERTIES; i++)
	{
		bool		ok = looked_at[i] > 0 && failed[i] == 0;

		printf("%s %d - %s (%ld cases", ok ? "ok" : "not ok", i + 1,
			   property_texts[i], looked_at[i]);
		if (failed[i] > 0)
			printf(", of which it does not hold in %ld", failed[i]);
		printf(")\n");
		all_hold = all_hold && ok;
	}
	printf("1..%d\n", NUM_PROPERTIES);
	return all_hold;
}

/*
 * Drawing
 */

static uint64 drawn = 0;

/* A number from 0 to n - 1; splitmix64. */
int
pick(int n)
{
	uint64		z = (drawn += UINT64CONST(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64CONST(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64CONST(0x94d049bb133111eb);
	return (int) ((z ^ (z >> 31)) % (uint64) n);
}

static text *
pick_text(int n, const char *const *texts)
{
	const char *chosen = texts[pick(n)];

	return chosen == NULL ? NULL : cstring_to_text(chosen);
}

#define PICK_TEXT(array)	pick_text(lengthof(array), array)

static const char *const tokens[] = {NULL, "", "token", "tokens", "Token"};
static const char *const history_ids[] = {
	NULL, "0", "9", "10", "99", "100", "9007199254740993", "18446744073709551615",
};
static const char *const untidy_history_ids[] = {NULL, "", "00", "010", "0100"};
static const char *const messages[] = {NULL, "", "boom"};
static const char *const reasons[] = {
	NULL, "paused", "auth", "failures", "token_loop", "gone",
};
static const int64 numbers[] = {0, 1, 2, 3, 500, PG_INT64_MAX};
static const int64 counts[] = {NO_COUNT, 0, 7, PG_INT64_MAX};
static const int32 run_lengths[] = {0, 1, 2, 3, 8, 9, 10, 29, 30, PG_INT32_MAX};
static const double amounts[] = {0, 0.5, 1, 12, MAX_AMOUNT};
static const int64 leases[] = {0, 1, 7, MAX_UPDATED_LEASE, MAX_INSERTED_LEASE};
static Interval intervals[] = {
	{.time = MIN_DURATION}, {.time = USECS_PER_HOUR}, {.day = 1},
	{.day = MAX_DURATION / USECS_PER_DAY},
};

/* The ends of what syncstate.clock may be, and an ordinary time. */
static const TimestampTz times_of_calls[] = {
	MIN_TIME + MAX_DURATION,
	INT64CONST(820000000) * USECS_PER_SEC,
	LAST_TIME,
};

/* A legal time, mostly near. */
TimestampTz
pick_set_time(void)
{
	static const int64 distances[] = {
		0, 1, USECS_PER_SEC / 2, USECS_PER_SEC, 10 * USECS_PER_MINUTE,
		2 * USECS_PER_HOUR, USECS_PER_DAY, 6 * USECS_PER_DAY, 8 * USECS_PER_DAY,
		400 * USECS_PER_DAY,
	};
	int64		distance = PICK(distances);

	if (pick(16) == 0)
		return pick(2) == 0 ? MIN_TIME : MAX_TIME - 1;
	return pick(2) == 0 ? now - distance : now + distance;
}

TimestampTz
pick_time(void)
{
	return pick(4) == 0 ? NO_TIME : pick_set_time();
}

Interval *
pick_interval(void)
{
	return pick(2) == 0 ? NULL : &PICK(intervals);
}

text *
pick_untidy_history_id(void)
{
	return PICK_TEXT(untidy_history_ids);
}

int64
pick_number(void)
{
	return PICK(numbers);
}

/* A column that is not of the key. */
int
pick_column(void)
{
	return Anum_sync_state_status + pick(Natts_sync_state - Anum_sync_state_status + 1);
}

#define PICK_STATUS()		pick(NUM_STATUSES)
#define PICK_TOKEN()		PICK_TEXT(tokens)
#define PICK_HISTORY_ID()	PICK_TEXT(history_ids)
#define PICK_REASON()		PICK_TEXT(reasons)
#define PICK_MESSAGE()		PICK_TEXT(messages)
#define PICK_TIME()			pick_time()
#define PICK_INTERVAL()		pick_interval()
#define PICK_NUMBER()		PICK(numbers)
#define PICK_COUNT()		PICK(counts)
#define PICK_INTEGER()		PICK(run_lengths)
#define PICK_TALLY()		PICK_INTEGER()
#define PICK_AMOUNT()		PICK(amounts)
#define PICK_FLAG()			(pick(2) == 0)

/* Sets a column to a value that is legal by itself. */
void
set_column(SyncState *row, int column)
{
	switch (column)
	{
#define SET(name, kind, writer) \
		case Anum_sync_state_##name: \
			row->name = PICK_##kind(); \
			break;
			SYNC_DATA_COLUMNS(SET)
	}
}

/* A policy of built-in settings, and of the least and the most that they may be. */
static void
draw_policy(void)
{
	static const double multipliers[] = {0, 0, 20, 1e6};
	static const double mean_rates[] = {1e-9, 1e-5, 1};

	memset(&policy, 0, sizeof(policy));
#define BETWEEN(least, most, builtin) \
	(pick(3) > 0 ? (builtin) : pick(2) == 0 ? (least) : (most))
#define DRAW_DURATION(least, most, builtin)	BETWEEN(least, most, builtin)
#define DRAW_COUNT(least, most, builtin)	BETWEEN(least, most, builtin)
#define DRAW_FRACTION(least, most, builtin)	BETWEEN(least, most, builtin)
#define DRAW_DURATION_OR_OFF(least, most, builtin) \
	(pick(3) == 0 ? 0 : pick(2) == 0 ? 7 * USECS_PER_DAY : BETWEEN(least, most, builtin))
#define DRAW_COUNT_OR_OFF(least, most, builtin)	BETWEEN(least, most, builtin)
#define DRAW_TTL_FROM(least, most, builtin)	pick(NUM_TTL_FROM)
#define DRAW_PAUSE(least, most, builtin)	(pick(4) == 0 ? pick_set_time() : NO_TIME)
#define DRAW_TIME_OR_OFF(least, most, builtin)	DRAW_PAUSE(least, most, builtin)
#define DRAW_KEEP_RUNS(least, most, builtin)	pick(NUM_KEEP_RUNS)
#define DRAW_LABEL(least, most, builtin)	((NameData) {"google"})
#define DRAW(name, kind, least, most, builtin) \
	policy.name = DRAW_##kind(least, most, builtin);
	SYNC_POLICY_SETTINGS(DRAW)

	/* what set_sync_policy() refuses */
	policy.retry_base = Min(policy.retry_base, policy.retry_cap);
	policy.min_interval = Min(policy.min_interval, policy.max_interval);

	policy.label_hash = pick(1000000);
	policy.multiplier = PICK(multipliers);
	policy.mean_rate = PICK(mean_rates);
}

/*
 * What decides most of what becomes of a row.  All combinations are tried: the
 * number of one is taken apart.
 */
#define NUM_RUNS		5		/* the statuses, and a lease that ran out */
#define NUM_LANES		8		/* past, now, future; parked for five reasons */
#define NUM_CURSORS		8		/* each of three parts */
#define NUM_FAILURES	5
#define NUM_LOSSES		6

const int	num_rows = NUM_RUNS * NUM_LANES * NUM_CURSORS * NUM_FAILURES * NUM_LOSSES;

static int
take_part(int *number, int n)
{
	int			part = *number % n;

	*number /= n;
	return part;
}

/* The legal row of a number; the rest of it is drawn. */
static void
draw_row(SyncState *row, int number)
{
	static const int32 losses[NUM_LOSSES] = {0, 1, 2, 8, 9, PG_INT32_MAX};
	int			run = take_part(&number, NUM_RUNS);
	int			lane = take_part(&number, NUM_LANES);
	int			cursor = take_part(&number, NUM_CURSORS);
	int			failure = take_part(&number, NUM_FAILURES);
	int			loss = take_part(&number, NUM_LOSSES);

	memset(row, 0, sizeof(*row));
	for (int i = 0; i < UUID_LEN; i++)
		row->key.user_id.data[i] = pick(256);
	row->key.account = cstring_to_text(pick(2) == 0 ? "" : "ada@work");
	row->key.source = 1;
	row->key.resource = cstring_to_text(pick(2) == 0 ? "" : "work");

	for (int column = Anum_sync_state_status; column <= Natts_sync_state; column++)
		set_column(row, column);
	row->created_at = pick_set_time();
	row->updated_at = pick_set_time();
	row->lease = PICK(leases);
	if (pick(3) == 0)
		row->changes_seen = row->seconds_watched = NO_AMOUNT;

	row->status = run < NUM_STATUSES ? run : SYNC_SYNCING;
	row->lease_expires_at = NO_TIME;
	if (row->status == SYNC_SYNCING)
	{
		do
			row->lease_expires_at = pick_set_time();
		while ((row->lease_expires_at > now) != (run == SYNC_SYNCING));
	}

	row->due_at = lane > 2 ? NO_TIME : lane == 1 ? now : pick_set_time();
	if ((lane == 0 && row->due_at > now) || (lane == 2 && row->due_at < now))
		row->due_at = now + (lane - 1) * USECS_PER_MINUTE;
	row->parked_reason = lane > 2 ? cstring_to_text(reasons[lane - 2]) : NULL;

	row->sync_token = cursor & 1 ? cstring_to_text("token") : NULL;
	do
		row->history_id = cursor & 2 ? PICK_TEXT(history_ids) : NULL;
	while ((cursor & 2) && row->history_id == NULL);
	row->updated_min = cursor & 4 ? pick_set_time() : NO_TIME;

	row->failures = failure == 0 ? 0 : failure == 1 ? 1 + pick(12) :
		failure == 2 ? Max(policy.max_failures - 1, 1) :
		failure == 3 ? policy.max_failures : PG_INT32_MAX;
	row->failing_since = row->failures == 0 ? NO_TIME : pick_set_time();
	row->token_losses = losses[loss];

	/* as every row is, once it was written */
	row->lease_required = row->lease_required && row->status == SYNC_SYNCING;
	if (row->status != SYNC_SYNCING)
		row->run_requested_at = NO_TIME;
	if (row->status == SYNC_SYNCING && has_cursor(row))
		row->full_sync_id = NO_COUNT;
	else if (row->status == SYNC_SYNCING && row->full_sync_id == NO_COUNT)
		row->full_sync_id = row->lease;
}

/* A row and a policy, and nothing said or written of it yet. */
void
draw_case(int number)
{
	static const double draws[] = {0, 0.5, 0.999999999};

	reset_memory();
	now = PICK(times_of_calls);
	next_draw = PICK(draws);
	draw_policy();
	draw_row(&old, number);
	written = new = old;
	memset(&names, 0, sizeof(names));
	memset(&report, 0, sizeof(report));
	report.key = old.key;
	report.updated_min = NO_TIME;
	report.error_message = old.error_message;
	report.progress_done = report.progress_total = NO_COUNT;
}

/* What a call says of the row. */
void
draw_report(void)
{
	static const int64 lease_times[] = {0, MIN_DURATION, MAX_LEASE_TIME};
	static const int64 waits[] = {0, MIN_DURATION, USECS_PER_HOUR, MAX_RETRY_AFTER};
	static const int64 delays[] = {0, 1, MAX_RELEASE_DELAY};

	report.has_lease = old.status == SYNC_SYNCING && pick(2) == 0;
	report.lease = old.lease;
	report.lease_time = PICK(lease_times);
	report.is_claim = pick(2) == 0;
	report.delay = PICK(delays);
	report.items_synced = PICK(numbers);
	report.sync_token = PICK_TEXT(tokens);
	report.history_id = PICK_TEXT(history_ids);
	report.updated_min = pick_time();
	report.error_message = PICK_TEXT(messages);
	report.kind = pick(NUM_FAILURE_KINDS);
	report.retry_after = PICK(waits);
	report.scope = pick(NUM_LIMIT_SCOPES);
	report.limited_until = pick_set_time();
	report.push_until = pick_time();
	report.push_begins = pick(2) == 0;
	report.page_token = PICK_TEXT(tokens);
	report.progress_done = PICK(counts);
	report.progress_total = PICK(counts);
}

/*
 * What a row may be, as doc/states.md and the reference have it
 */

bool
has_cursor(const SyncState *row)
{
	return row->sync_token != NULL || row->history_id != NULL ||
		row->updated_min != NO_TIME;
}

bool
is_parked(const SyncState *row)
{
	return row->due_at == NO_TIME;
}

/* The latest due time that a rule gives. */
TimestampTz
latest_due(const SyncState *row)
{
	int64		wait = policy.sync_interval;

	if (row->sync_interval != NULL)
		wait = row->sync_interval->day * USECS_PER_DAY + row->sync_interval->time;
	else if (policy.daily_budget != 0)
		wait = policy.max_interval;
	if (policy.push_renew_before != 0)
		wait = Max(wait, policy.push_interval);
	wait = Max(wait, Max(policy.retry_cap, USECS_PER_DAY));
	if (row->status == SYNC_RATE_LIMITED)
		wait = Max(wait, 33 * USECS_PER_DAY);
	return now + wait;
}

/* The limit of the row's account, if any rule gives it. */
TimestampTz
settled_limit(const SyncState *row)
{
	return row->limited_until > now + 30 * USECS_PER_DAY ?
		NO_TIME : row->limited_until;
}

/* The state that a call is for; others are refused before. */
bool
is_possible(void)
{
	bool		is_expired = old.status == SYNC_SYNCING && old.lease_expires_at <= now;

	switch (transition)
	{
		case TRANSITION_START:
			return old.status != SYNC_SYNCING || is_expired;
		case TRANSITION_GIVE_UP:
			return is_expired;
		case TRANSITION_RENEW:
		case TRANSITION_CHECKPOINT:
		case TRANSITION_RELEASE:
			return old.status == SYNC_SYNCING;
		default:
			return true;
	}
}

/* The characters of a short text, until the next call. */
const char *
characters(const text *value)
{
	static char buffer[64];

	snprintf(buffer, sizeof(buffer), "%.*s",
			 (int) VARSIZE_ANY_EXHDR(value), VARDATA_ANY(value));
	return buffer;
}

static bool
is_history_id(const text *value)
{
	const char *digits = characters(value);

	if (digits[0] == '\0' || strlen(digits) > 20 ||
		strspn(digits, "0123456789") != strlen(digits) ||
		(digits[0] == '0' && strlen(digits) > 1))
		return false;
	return strlen(digits) < 20 || strcmp(digits, "18446744073709551615") <= 0;
}

static bool
has_size(const text *value, int most)
{
	return value == NULL || VARSIZE_ANY_EXHDR(value) <= most;
}

static bool
is_reason(const text *value)
{
	for (int i = 1; i < lengthof(reasons); i++)
	{
		if (is_text(value, reasons[i]))
			return true;
	}
	return false;
}

static bool
is_interval(const Interval *value)
{
	int64		usecs = value->day * USECS_PER_DAY + value->time;

	return value->month == 0 &&
		usecs >= USECS_PER_SEC && usecs <= 36500 * USECS_PER_DAY;
}

/* The CHECK of the table. */
bool
is_legal(const SyncState *row)
{
#define CHECK(name, kind, writer) \
	if (!LEGAL_##kind(row->name)) \
		return false;
#define LEGAL_STATUS(value)		true
#define LEGAL_TOKEN(value)		has_size(value, 65536)
#define LEGAL_HISTORY_ID(value)	((value) == NULL || is_history_id(value))
#define LEGAL_REASON(value)		((value) == NULL || is_reason(value))
#define LEGAL_MESSAGE(value)	has_size(value, 8192)
#define LEGAL_TIME(value) \
	((value) == NO_TIME || ((value) >= MIN_TIME && (value) < MAX_TIME))
#define LEGAL_INTERVAL(value)	((value) == NULL || is_interval(value))
#define LEGAL_NUMBER(value)		((value) >= 0)
#define LEGAL_COUNT(value)		((value) >= NO_COUNT)
#define LEGAL_INTEGER(value)	((value) >= 0)
#define LEGAL_TALLY(value)		LEGAL_INTEGER(value)
#define LEGAL_FLAG(value)		true
#define LEGAL_AMOUNT(value) \
	((value) == NO_AMOUNT || ((value) >= 0 && (value) <= 1e12))

	SYNC_DATA_COLUMNS(CHECK)

	return (row->due_at == NO_TIME) == (row->parked_reason != NULL) &&
		(row->status == SYNC_SYNCING) == (row->lease_expires_at != NO_TIME) &&
		(!row->lease_required || row->status == SYNC_SYNCING) &&
		(row->run_requested_at == NO_TIME || row->status == SYNC_SYNCING) &&
		(row->failures > 0) == (row->failing_since != NO_TIME) &&
		(row->changes_seen == NO_AMOUNT) == (row->seconds_watched == NO_AMOUNT) &&
		row->created_at != NO_TIME && row->updated_at != NO_TIME &&
		has_size(row->key.account, 255) && has_size(row->key.resource, 1024);
}
