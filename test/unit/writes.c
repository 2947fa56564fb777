/*
 * writes.c: what holds of direct writes, of inserts, and of a row all its life
 */
#include "postgres.h"

#include <string.h>

#include "backend.h"
#include "cases.h"

/* Writes "written" over the row. */
static void
write_row(void)
{
	is_write = true;
	new = written;
	syncstate_follow_write(&old, &new, &names, &policy, now);
}

/* A history id as it is kept. */
static text *
tidied(const text *value)
{
	const char *digits;

	if (value == NULL || is_text(value, ""))
		return NULL;
	digits = characters(value);
	while (digits[0] == '0' && digits[1] != '\0')
		digits++;
	return cstring_to_text(digits);
}

/* The columns whose values, as written, the row must have. */
static uint64
kept_columns(uint64 changed)
{
	uint64		kept = changed;
	bool		is_both = (changed & PARKING) == PARKING;

	/* always the time of the write; a request too; and a number that only grows */
	kept &= ~(COLUMN(updated_at) | COLUMN(requested_at));
	if (written.lease < old.lease)
		kept &= ~COLUMN(lease);

	/* what there is only in some rows */
	if (new.status != SYNC_SYNCING || written.lease_expires_at == NO_TIME)
		kept &= ~COLUMN(lease_expires_at);
	if (new.status != SYNC_SYNCING)
		kept &= ~(COLUMN(lease_required) | COLUMN(run_requested_at));
	if (new.status == SYNC_SYNCING && (written.full_sync_id == NO_COUNT || has_cursor(&new)))
		kept &= ~COLUMN(full_sync_id);
	if (new.failures == 0 || written.failing_since == NO_TIME)
		kept &= ~COLUMN(failing_since);
	if (!has_cursor(&new) || written.token_issued_at == NO_TIME)
		kept &= ~COLUMN(token_issued_at);
	if (has_cursor(&old) && !has_cursor(&new))
		kept &= ~(PROGRESS | COLUMN(full_sync_id));

	/* a reason wins over a time, and without both the row is due */
	if (is_both && (written.due_at == NO_TIME) == (written.parked_reason == NULL))
		kept &= ~COLUMN(due_at);
	return kept;
}

/* What holds of the cursor after a direct write. */
static void
expect_written_cursor(const SyncState *tidy)
{
	uint64		columns = difference(&old, tidy);
	bool		is_lost = has_cursor(&old) && !has_cursor(&new);
	bool		is_given =
		((columns & COLUMN(sync_token)) && tidy->sync_token != NULL) ||
		((columns & COLUMN(history_id)) && tidy->history_id != NULL) ||
		((columns & COLUMN(updated_min)) && tidy->updated_min != NO_TIME);

	holds(CURSOR_WHOLE, has_cursor(&new) == (new.token_issued_at != NO_TIME));
	if (is_lost)
		holds(CURSOR_WHOLE, new.page_token == NULL &&
			  new.progress_done == NO_COUNT && new.progress_total == NO_COUNT);
	if (is_given && !(columns & COLUMN(token_issued_at)))
		holds(WRITE_AGE, new.token_issued_at == now);
	if (old.status == SYNC_SYNCING && has_cursor(&old) && !has_cursor(tidy))
		holds(WRITE_REVOKES, syncstate_lease_is_stale(&new, old.lease));
}

/* What holds of the lease after a direct write. */
static void
expect_written_lease(void)
{
	holds(WRITE_LEASE, new.lease >= old.lease);
	if (old.status != SYNC_SYNCING && new.status == SYNC_SYNCING)
		holds(WRITE_LEASE, new.lease > old.lease);
	if (new.lease > old.lease && written.lease <= old.lease)
		holds(WRITE_LEASE, new.lease == old.lease + 1 && new.status == SYNC_SYNCING);
}

static void
expect_write(void)
{
	Transition	found = syncstate_recognize(&old, &written, &names, now);
	SyncState	tidy = written;

	if (is_text(written.sync_token, ""))
		tidy.sync_token = NULL;
	tidy.history_id = tidied(written.history_id);

	holds(WRITE_TOTAL, found == TRANSITION_NONE || found == TRANSITION_START ||
		  found == TRANSITION_COMPLETE || found == TRANSITION_FAIL ||
		  found == TRANSITION_RATE_LIMIT || found == TRANSITION_CLEAR_TOKEN ||
		  found == TRANSITION_RESUME);
	holds(WRITE_LEGAL, is_legal(&new));
	holds(WRITE_KEEPS, new.updated_at == now && !(difference(&tidy, &new) &
												  kept_columns(difference(&old, &tidy))));
	if (written.requested_at != old.requested_at)
		holds(WRITE_REQUEST, new.requested_at ==
			  (written.requested_at == NO_TIME ? NO_TIME : now));
	if (difference(&old, &written) == COLUMN(requested_at) && found == TRANSITION_NONE)
	{
		bool		is_asked = written.requested_at != NO_TIME;

		holds(WRITE_REQUEST, new.due_at ==
			  (is_asked && old.due_at > latest_due(&old) ? now : old.due_at));
		holds(WRITE_REQUEST, new.limited_until ==
			  (is_asked ? settled_limit(&old) : old.limited_until));
	}
	expect_written_cursor(&tidy);
	expect_written_lease();

	/* the same again */
	if (is_legal(&new))
	{
		SyncState	again = new;
		Written		nothing = {0};

		syncstate_follow_write(&new, &again, &nothing, &policy, now);
		holds(WRITE_AGAIN, difference(&new, &again) == 0);
	}
}

/* Any columns get any legal values. */
void
try_write(int number)
{
	static const int how_many[] = {1, 1, 2, 3, 6};

	draw_case(number);
	for (int n = PICK(how_many); n > 0; n--)
	{
		int			column = pick_column();

		set_column(&written, column);
		if (column == Anum_sync_state_history_id && pick(3) == 0)
			written.history_id = pick_untidy_history_id();
		if (column == Anum_sync_state_lease)
			written.lease = pick(2) == 0 ? pick(8) : old.lease + 1;
		names.status |= column == Anum_sync_state_status;
		names.items_synced |= column == Anum_sync_state_items_synced;
		names.sync_token |= column == Anum_sync_state_sync_token;
		names.history_id |= column == Anum_sync_state_history_id;
		names.updated_min |= column == Anum_sync_state_updated_min;
	}

	if (pick(6) == 0)
	{
		written.sync_token = written.history_id = NULL;
		written.updated_min = NO_TIME;
	}

	/* these are not null */
	if (written.created_at == NO_TIME)
		written.created_at = now;
	if (written.updated_at == NO_TIME)
		written.updated_at = now;
	if ((written.changes_seen == NO_AMOUNT) != (written.seconds_watched == NO_AMOUNT))
		written.changes_seen = written.seconds_watched = 1;
	names.status |= pick(8) == 0;

	write_row();
	expect_write();
}

/* Columns that no transition looks at. */
#define UNREAD		(COLUMN(items_synced) | PROGRESS | \
					 COLUMN(token_losses) | COLUMN(error_message) | COLUMN(created_at))

/* The client also writes a column that the call has nothing to do with. */
static uint64
write_another(Transition call, uint64 given)
{
	int			column = pick_column();
	uint64		another = UINT64CONST(1) << column;

	if (!(another & UNREAD & ~own_columns[call] & ~given))
		return 0;
	set_column(&written, column);
	if (written.created_at == NO_TIME)
		written.created_at = now;
	return another;
}

/* A write is a call, but for some columns that are given. */
static void
expect_call(Property property, Transition call, uint64 given)
{
	SyncState	expected = old;
	SyncState	as_asked;

	/* what the client says of these, the call goes by */
	expected.last_sync_at = written.last_sync_at;
	expected.sync_interval = written.sync_interval;
	if (given & COLUMN(failures))
		expected.failures = written.failures - 1;

	given |= write_another(call, given);
	as_asked = written;
	syncstate_apply(call, &expected, &report, &policy, now);
	if (call == TRANSITION_START && (given & COLUMN(lease)) &&
		expected.full_sync_id == old.lease + 1)
		expected.full_sync_id = written.lease;	/* it began under that one */
	if (given & COLUMN(lease))
		expected.syncs_started =
			Min(old.syncs_started + Max(written.lease - old.lease, 0), PG_INT32_MAX);
	write_row();
	holds(property, (difference(&expected, &new) & ~given) == 0 &&
		  (difference(&as_asked, &new) & given) == 0);
	written = old;
}

/* Writes of the status, as a client that keeps its state by hand makes them. */
static void
try_status(void)
{
	bool		was_running = old.status == SYNC_SYNCING;

	names.status = true;
	written.status = SYNC_SYNCING;
	if (!was_running)
		expect_call(WRITE_START, TRANSITION_START, 0);
	else
		expect_call(WRITE_TAKE_OVER, old.lease_expires_at <= now ?
					TRANSITION_START : TRANSITION_NONE, 0);
	if (was_running && old.lease_expires_at <= now)
	{
		/* until when, too */
		names.status = true;
		written.status = SYNC_SYNCING;
		written.lease_expires_at = now + USECS_PER_MINUTE;
		expect_call(WRITE_TAKE_OVER, TRANSITION_START, COLUMN(lease_expires_at));
	}

	written.status = SYNC_ERROR;
	if (pick(2) == 0)
		written.error_message = cstring_to_text("broken");
	report.error_message = written.error_message;
	if (old.status != SYNC_ERROR)
	{
		expect_call(WRITE_FAIL, TRANSITION_FAIL, 0);

		/* how many failures there are with this one */
		written.status = SYNC_ERROR;
		written.failures = 1 + pick(40);
		if (written.failures == old.failures)
			written.failures++;
		report.error_message = old.error_message;
		expect_call(WRITE_FAIL, TRANSITION_FAIL, COLUMN(failures));
	}
	else
		expect_call(WRITE_FAIL, TRANSITION_NONE, COLUMN(error_message));
	report.error_message = old.error_message;

	written.status = SYNC_RATE_LIMITED;
	expect_call(WRITE_LIMIT, TRANSITION_RATE_LIMIT, 0);
	names.status = false;
	written.status = SYNC_RATE_LIMITED;
	expect_call(WRITE_LIMIT, old.status == SYNC_RATE_LIMITED ?
				TRANSITION_NONE : TRANSITION_RATE_LIMIT, 0);

	written.status = SYNC_IDLE;
	if (old.status == SYNC_ERROR && !is_parked(&old))
		expect_call(WRITE_RESUME, TRANSITION_RESUME, 0);
	else if (!was_running)
		expect_call(WRITE_RESUME, TRANSITION_NONE, COLUMN(status));
	written = old;
}

/* An end of a run, with its new cursor. */
static void
try_completion(void)
{
	const char *last_history_id = "18446744073709551615";

	if (old.status != SYNC_SYNCING)
		return;
	written.status = SYNC_IDLE;
	names.items_synced = pick(2) == 0;
	if (names.items_synced)
	{
		written.items_synced = pick_number();
		report.items_synced = written.items_synced;
	}

	/* a cursor that is named is given, also where it is the same as before */
	names.sync_token = pick(2) == 0;
	names.history_id = pick(2) == 0;
	names.updated_min = pick(2) == 0;
	if (pick(2) == 0)
		written.sync_token = cstring_to_text("another");
	if (pick(2) == 0)
		written.history_id = cstring_to_text(last_history_id);
	if (pick(2) == 0)
		written.updated_min = MAX_TIME - 1;
	if (names.sync_token || (difference(&old, &written) & COLUMN(sync_token)))
		report.sync_token = written.sync_token;
	if (names.history_id || (difference(&old, &written) & COLUMN(history_id)))
		report.history_id = written.history_id;
	if (names.updated_min || (difference(&old, &written) & COLUMN(updated_min)))
		report.updated_min = written.updated_min;
	if (pick(4) == 0)
		written.last_sync_at = pick_time();
	if (pick(4) == 0)
		written.sync_interval = pick_interval();
	expect_call(WRITE_COMPLETE, TRANSITION_COMPLETE, difference(&old, &written) &
				(COLUMN(last_sync_at) | COLUMN(sync_interval)));
	report.sync_token = report.history_id = NULL;
	report.updated_min = NO_TIME;
	report.items_synced = 0;
	memset(&names, 0, sizeof(names));
}

/* The write that ends a run takes its row back, which waits; or parks it. */
static void
try_two_calls(void)
{
	static const struct
	{
		SyncStatus	status;
		Transition	end;
	}			ends[] = {
		{SYNC_IDLE, TRANSITION_COMPLETE},
		{SYNC_ERROR, TRANSITION_FAIL},
		{SYNC_RATE_LIMITED, TRANSITION_RATE_LIMIT},
	};

	if (old.status != SYNC_SYNCING)
		return;
	for (int i = 0; i < lengthof(ends); i++)
	{
		SyncState	expected = old;

		written.status = ends[i].status;
		written.parked_reason = NULL;
		if (is_parked(&old))
			syncstate_apply(TRANSITION_RESUME, &expected, &report, &policy, now);
		else
			written.due_at = NO_TIME;

		/* how many failures there are with this one */
		if (ends[i].end == TRANSITION_FAIL && pick(2) == 0)
		{
			written.failures = 1 + pick(40);
			if (written.failures == old.failures)
				written.failures++;
			expected.failures = written.failures - 1;
		}
		syncstate_apply(ends[i].end, &expected, &report, &policy, now);
		if (!is_parked(&old))
			syncstate_apply(TRANSITION_PAUSE, &expected, &report, &policy, now);
		write_row();
		holds(WRITE_BOTH, difference(&expected, &new) == 0);
		holds(WRITE_BOTH, is_parked(&old) ? new.due_at > now :
			  is_text(new.parked_reason, "paused"));
		written = old;
	}
}

/* Writes of other columns. */
static void
try_others(void)
{
	written.lease += 1 + pick(3);
	expect_call(WRITE_NUMBER, old.status == SYNC_SYNCING ?
				TRANSITION_START : TRANSITION_NONE, COLUMN(lease));

	written.sync_token = pick(2) == 0 ? NULL : cstring_to_text("");
	written.history_id = pick(2) == 0 ? NULL : cstring_to_text("");
	written.updated_min = NO_TIME;
	expect_call(WRITE_CLEAR, has_cursor(&old) ?
				TRANSITION_CLEAR_TOKEN : TRANSITION_NONE, 0);

	/* a run that says so goes on without its cursor, under a new lease */
	if (old.status == SYNC_SYNCING && has_cursor(&old))
	{
		written.sync_token = written.history_id = NULL;
		written.updated_min = NO_TIME;
		names.status = true;
		write_row();
		holds(WRITE_REVOKES, new.status == SYNC_SYNCING && new.lease == old.lease + 1);
		written = old;
		names.status = false;
	}

	if (is_parked(&old))
	{
		written.parked_reason = NULL;
		expect_call(WRITE_RESUME, TRANSITION_RESUME, 0);
		written.due_at = pick_set_time();
		expect_call(WRITE_RESUME, TRANSITION_RESUME, COLUMN(due_at));
	}
	else
	{
		written.due_at = NO_TIME;
		expect_call(WRITE_PAUSE, TRANSITION_PAUSE, 0);
		written.parked_reason = cstring_to_text("paused");
		expect_call(WRITE_PAUSE, TRANSITION_PAUSE, COLUMN(parked_reason));

		/* for a reason of ours, as if we had parked it */
		written.parked_reason = cstring_to_text("auth");
		write_row();
		holds(TROUBLE, is_text(new.parked_reason, "auth") && new.troubled_at == now);

		/* even if the same write completes a sync */
		written.status = SYNC_IDLE;
		names.status = true;
		write_row();
		holds(TROUBLE, new.troubled_at == now);
		names.status = false;
		written = old;
	}
}

/* Nothing is written, or what was there. */
static void
try_nothing(void)
{
	holds(WRITE_NOTHING, TRANSITION_NONE ==
		  syncstate_recognize(&old, &written, &names, now));
	expect_call(WRITE_NOTHING, TRANSITION_NONE, 0);
	names.items_synced = names.sync_token = names.history_id = names.updated_min = true;
	names.status = old.status == SYNC_IDLE || old.status == SYNC_ERROR ||
		(old.status == SYNC_SYNCING && old.lease_expires_at > now);
	holds(WRITE_NOTHING, TRANSITION_NONE ==
		  syncstate_recognize(&old, &written, &names, now));
	expect_call(WRITE_NOTHING, TRANSITION_NONE, 0);
}

/* Writes that are one call. */
void
try_calls(int number)
{
	draw_case(number);

	/* as every row is, once it was written: a cursor has an age */
	if (!has_cursor(&old))
		old.token_issued_at = NO_TIME;
	else if (old.token_issued_at == NO_TIME)
		old.token_issued_at = pick_set_time();
	written = old;
	try_status();
	try_completion();
	try_two_calls();
	try_others();
	try_nothing();
}

/* One column gets a value that no row may have. */
void
try_nonsense(int number)
{
	static Interval none = {0};
	static Interval month = {.month = 1};

	for (int i = 0; i < 9; i++)
	{
		draw_case(number);
		switch (i)
		{
			case 0:
				written.failures = -1;
				break;
			case 1:
				written.token_losses = -1;
				break;
			case 2:
				written.items_synced = -1;
				break;
			case 3:
				written.parked_reason = cstring_to_text("bored");
				break;
			case 4:
				written.history_id = cstring_to_text("12a");
				break;
			case 5:
				written.history_id = cstring_to_text("18446744073709551616");
				break;
			case 6:
				written.sync_interval = &none;
				break;
			case 7:
				written.sync_interval = &month;
				break;
			case 8:
				written.changes_seen = old.changes_seen == NO_AMOUNT ? 1 : NO_AMOUNT;
				break;
		}
		write_row();
		holds(WRITE_NONSENSE, !is_legal(&new));
	}
}

/* Columns that an insert fills in where they are missing. */
#define FILLED(FILL) \
	FILL(lease_expires_at, NO_TIME) \
	FILL(lease, 0) \
	FILL(last_sync_at, NO_TIME) \
	FILL(failing_since, NO_TIME) \
	FILL(full_sync_id, NO_COUNT) \
	FILL(token_issued_at, NO_TIME)

static void
insert_row(void)
{
	is_write = true;
	new = written;
	syncstate_fill_in(&new, &policy, now);
	holds(INSERT_LEGAL, is_legal(&new));
}

void
try_insert(int number)
{
	uint64		missing = 0;

	draw_case(number);
#define LEAVE_OUT(name, none) \
	if (pick(3) == 0) \
		written.name = none;
	FILLED(LEAVE_OUT)
	if (pick(3) == 0)
	{
		written.due_at = NO_TIME;
		written.parked_reason = NULL;
		missing |= COLUMN(due_at);
	}
#define IS_MISSING(name, none) \
	if (written.name == none) \
		missing |= COLUMN(name);
	FILLED(IS_MISSING)

	insert_row();
	holds(INSERT_STAYS, !(difference(&written, &new) & ~missing));
	if (missing & COLUMN(due_at))
		holds(INSERT_FILLS, new.due_at > now - USECS_PER_SEC && new.due_at <= now);
	if (new.status == SYNC_SYNCING)
		holds(INSERT_FILLS, new.lease >= 1 && new.last_sync_at != NO_TIME &&
			  (written.lease_expires_at != NO_TIME ||
			   new.lease_expires_at == now + policy.lease_time) &&
			  new.full_sync_id == (has_cursor(&new) ? NO_COUNT :
								   written.full_sync_id == NO_COUNT ?
								   new.lease : written.full_sync_id));
	else
		holds(INSERT_STAYS, !(difference(&written, &new) &
							  (RUN | COLUMN(lease) | COLUMN(last_sync_at) | COLUMN(full_sync_id))));
	if (written.token_issued_at == NO_TIME)
		holds(INSERT_FILLS, new.token_issued_at == (has_cursor(&new) ? now : NO_TIME));

	/* an empty cursor is none */
	written.sync_token = cstring_to_text("");
	written.history_id = pick_untidy_history_id();
	insert_row();
	holds(INSERT_STAYS, new.sync_token == NULL &&
		  same_text(new.history_id, tidied(written.history_id)));
}

#define STEPS	200

void
try_life(int number)
{
	int64		holder = -1;

	draw_case(number);
	new = old;
	for (int step = 0; step < STEPS; step++)
	{
		static const int64 waits[] = {
			0, USECS_PER_SEC, USECS_PER_MINUTE, USECS_PER_HOUR, 8 * USECS_PER_DAY,
		};
		bool		was_held;

		/* texts live as long as the row */
		old = new;
		now = Min(now + PICK(waits), LAST_TIME);
		is_write = pick(4) == 0;
		was_held = syncstate_lease_is_held(&old, holder);
		if (is_write)
		{
			int			column = pick_column();

			/* a number that a client makes up; and what no row has null by itself */
			if (column == Anum_sync_state_lease ||
				column == Anum_sync_state_created_at ||
				column == Anum_sync_state_changes_seen ||
				column == Anum_sync_state_seconds_watched)
				continue;
			written = old;
			set_column(&written, column);
			names.status = column == Anum_sync_state_status;
			write_row();
		}
		else
		{
			transition = pick(NUM_TRANSITIONS);
			draw_report();
			if (!is_possible())
				continue;
			syncstate_apply(transition, &new, &report, &policy, now);
		}
		holds(LIFE_LEGAL, is_legal(&new));

		/* whoever had it has it no more once somebody else has, or nobody */
		if (new.lease != old.lease)
		{
			holds(LIFE_FENCE, new.lease > holder);
			holds(LIFE_FENCE, !syncstate_lease_is_held(&new, holder));
			holder = new.lease;
		}
		else if (!was_held)
			holds(LIFE_FENCE, !syncstate_lease_is_held(&new, holder));
	}
}
