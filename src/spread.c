/*
 * spread.c: reports that hold for all rows of an account
 *
 * A provider limits an account's use of a source, and revokes its grant for all
 * sources at once.  A report of either is applied to its own row and told to the
 * others, so that a claim looks at nothing but the row.
 *
 * All rows that may be written are locked first, in the order of the key: so no
 * two reports wait for each other, and whether a report holds is known before
 * anything of it is told.
 */
#include "postgres.h"

#include "utils/builtins.h"

#include "news.h"
#include "spread.h"
#include "store.h"
#include "syncstate.h"

/* The rows that reports of an account concern, and what these tell of a source. */
typedef struct Spread
{
	RowAccess  *rows;
	SyncPolicy *policies;		/* of all sources, in the order of the enum */
	int			nsources;
	TimestampTz *limited_until; /* of each source; NO_TIME: not limited */
	AccountReport **revoked_by; /* of each source; NULL: not revoked */
	const SyncKey *made;		/* the row to be made if it is missing, or NULL */
	SyncKey    *keys;
	int			nkeys;
	AccountReport **held;		/* of each key: the report that is applied, or NULL */
	TimestampTz now;
} Spread;

/* Whether a report may concern more rows than its own. */
bool
syncstate_spreads(Transition transition, const Report *report)
{
	return report->scope == SCOPE_ACCOUNT &&
		(transition == TRANSITION_RATE_LIMIT ||
		 (transition == TRANSITION_FAIL && report->kind == FAILURE_AUTH));
}

static bool
same_provider(const SyncPolicy *a, const SyncPolicy *b)
{
	return strcmp(NameStr(a->provider), NameStr(b->provider)) == 0;
}

/* The place of a source among the policies. */
static int
rank_of(const Spread *spread, Oid source)
{
	for (int i = 0; i < spread->nsources; i++)
	{
		if (spread->policies[i].source == source)
			return i;
	}
	elog(ERROR, "unexpected sync source %u", source);
}

/* Compares the keys of two rows of the account. */
static int
compare_keys(const Spread *spread, const SyncKey *a, const SyncKey *b)
{
	int			cmp = rank_of(spread, a->source) - rank_of(spread, b->source);

	return cmp != 0 ? cmp : syncstate_compare_text(a->resource, b->resource);
}

/* Whether a report concerns rows of a source, if only its own. */
static bool
concerns(const Spread *spread, const AccountReport *report, int rank)
{
	int			own = rank_of(spread, report->report->key.source);

	return own == rank ||
		(report->transition == TRANSITION_FAIL &&
		 syncstate_spreads(report->transition, report->report) &&
		 same_provider(&spread->policies[own], &spread->policies[rank]));
}

/* The sources that reports of an account concern. */
static SyncAccount
concerned(const Spread *spread, const AccountReport *reports, int nreports)
{
	SyncAccount account = {
		.user_id = reports[0].report->key.user_id,
		.account = reports[0].report->key.account,
		.sources = palloc(Max(spread->nsources, 1) * sizeof(Oid)),
	};

	for (int i = 0; i < spread->nsources; i++)
	{
		bool		is_concerned = false;

		for (int j = 0; j < nreports && !is_concerned; j++)
			is_concerned = concerns(spread, &reports[j], i);
		if (is_concerned)
			account.sources[account.nsources++] = spread->policies[i].source;
	}
	return account;
}

/* Adds the key of the row to be made in its place, unless it is there. */
static void
add_made(Spread *spread)
{
	int			place = 0;
	int			cmp = 1;

	while (place < spread->nkeys &&
		   (cmp = compare_keys(spread, &spread->keys[place], spread->made)) < 0)
		place++;
	if (place < spread->nkeys && cmp == 0)
		return;
	spread->keys = repalloc(spread->keys, (spread->nkeys + 1) * sizeof(SyncKey));
	memmove(&spread->keys[place + 1], &spread->keys[place],
			(spread->nkeys - place) * sizeof(SyncKey));
	spread->keys[place] = *spread->made;
	spread->nkeys++;
}

/*
 * Locks all rows that may be written, in the order of the key.  A row that is
 * made is made in its turn, since others wait for what is made.
 */
static void
lock_all(Spread *spread, const AccountReport *reports, int nreports)
{
	SyncAccount account = concerned(spread, reports, nreports);
	SyncState	row;

	spread->keys = syncstate_store_account(&account, &spread->nkeys);
	if (spread->made != NULL)
		add_made(spread);
	spread->held = palloc0(Max(spread->nkeys, 1) * sizeof(AccountReport *));

	syncstate_rows_look(spread->rows);
	for (int i = 0; i < spread->nkeys; i++)
	{
		if (spread->made != NULL &&
			compare_keys(spread, &spread->keys[i], spread->made) == 0)
			syncstate_rows_lock_or_make(spread->rows, spread->made, true, &row);
		else
			(void) syncstate_rows_lock(spread->rows, &spread->keys[i], &row);
	}
	spread->now = syncstate_now();	/* after the waits for the locks */
}

/* Applies a report to its own row. */
static void
apply(const Spread *spread, const AccountReport *report, SyncState *row)
{
	syncstate_apply(report->transition, row, report->report,
					&spread->policies[rank_of(spread, row->key.source)],
					spread->now);
}

/* What a report that holds tells the other rows; its row is as it will be. */
static void
tell(Spread *spread, AccountReport *report, const SyncState *row)
{
	int			rank = rank_of(spread, row->key.source);
	const SyncPolicy *policy = &spread->policies[rank];

	if (!syncstate_spreads(report->transition, report->report))
		return;
	if (report->transition == TRANSITION_RATE_LIMIT)
	{
		spread->limited_until[rank] =
			Max(spread->limited_until[rank],
				spread->now + syncstate_limit_wait(report->report, policy));
		return;
	}
	if (!syncstate_grant_is_dead(row, report->report, policy))
		return;
	for (int i = 0; i < spread->nsources; i++)
	{
		if (same_provider(&spread->policies[i], policy) &&
			spread->revoked_by[i] == NULL)
			spread->revoked_by[i] = report;
	}
}

/*
 * Finds the report that holds of each row, and what all of them tell.  Reports
 * and keys are both in the order of the key.
 */
static void
hear(Spread *spread, AccountReport *reports, int nreports, ReportCheck applies)
{
	int			next = 0;
	SyncState	row;

	for (int i = 0; i < spread->nkeys; i++)
	{
		const SyncKey *key = &spread->keys[i];

		while (next < nreports &&
			   compare_keys(spread, &reports[next].report->key, key) < 0)
			next++;
		if (next == nreports ||
			compare_keys(spread, &reports[next].report->key, key) > 0 ||
			!syncstate_rows_lock(spread->rows, key, &row))
			continue;
		for (int j = next; j < nreports && spread->held[i] == NULL; j++)
		{
			if (compare_keys(spread, &reports[j].report->key, key) > 0)
				break;
			if (applies(reports[j].transition, &row, reports[j].report, spread->now))
				spread->held[i] = &reports[j];
		}
		if (spread->held[i] == NULL)
			continue;
		apply(spread, spread->held[i], &row);
		tell(spread, spread->held[i], &row);
	}
}

/* Lets a row follow what was told of its source; false if that changes nothing. */
static bool
follow(const Spread *spread, SyncState *row)
{
	int			rank = rank_of(spread, row->key.source);
	const SyncPolicy *policy = &spread->policies[rank];
	Report		report = {.limited_until = spread->limited_until[rank]};
	bool		limits = report.limited_until > row->limited_until;
	bool		revokes = spread->revoked_by[rank] != NULL &&
		row->parked_reason == NULL;

	if (limits)
		syncstate_apply(TRANSITION_LIMIT, row, &report, policy, spread->now);
	if (revokes)
		syncstate_apply(TRANSITION_REVOKE, row, &report, policy, spread->now);
	return limits || revokes;
}

/* Tells of an account that a report has parked, under the report's row. */
static void
tell_parked(RowAccess *rows, const Report *report, TimestampTz now)
{
	EventRow	event = {
		.event = EVENT_PARKED,
		.at = now,
		.key = &report->key,
		.lease = report->has_lease ? report->lease : NO_COUNT,
		.reason = cstring_to_text(syncstate_parked_reasons[PARKED_AUTH]),
		.detail = report->error_message,
	};

	syncstate_news_event(&rows->news, &event);
}

/*
 * Writes each row that its report or another one changes, once.  All that is
 * parked with a grant is one event.
 */
static void
write_all(Spread *spread)
{
	SyncState	row;

	for (int i = 0; i < spread->nkeys; i++)
	{
		AccountReport *report = spread->held[i];
		AccountReport *revoked_by;
		bool		is_parked;
		HeapTuple	written;

		if (!syncstate_rows_lock(spread->rows, &spread->keys[i], &row))
			continue;
		if (report != NULL)
			apply(spread, report, &row);
		if (!follow(spread, &row) && report == NULL)
			continue;
		revoked_by = spread->revoked_by[rank_of(spread, row.key.source)];
		is_parked = revoked_by != NULL &&
			syncstate_is_parked_for(&row, PARKED_AUTH) &&
			syncstate_withhold(&row, EVENT_PARKED);
		written = syncstate_rows_write(spread->rows, &row);
		if (is_parked && written != NULL && !revoked_by->is_told)
		{
			tell_parked(spread->rows, revoked_by->report, spread->now);
			revoked_by->is_told = true;
		}
		if (report != NULL)
			report->result = written;
	}
}

/*
 * Applies reports of rows of one account, in the order of the key, and tells the
 * other rows.  Of several reports of one row, the first that holds is applied.
 * A missing row is made if its report, then the only one, has no lease; else it
 * is passed over.  Returns the time of it all.
 */
TimestampTz
syncstate_spread(RowAccess *rows, AccountReport *reports, int nreports,
				 ReportCheck applies)
{
	Spread		spread = {.rows = rows};

	spread.policies = syncstate_policies(&spread.nsources);
	spread.limited_until = palloc(Max(spread.nsources, 1) * sizeof(TimestampTz));
	for (int i = 0; i < spread.nsources; i++)
		spread.limited_until[i] = NO_TIME;
	spread.revoked_by = palloc0(Max(spread.nsources, 1) * sizeof(AccountReport *));
	if (!reports[0].report->has_lease)
		spread.made = &reports[0].report->key;

	lock_all(&spread, reports, nreports);
	hear(&spread, reports, nreports, applies);
	write_all(&spread);
	return spread.now;
}

/* The keys of the rows of an account that have the provider of this one's source. */
static SyncKey *
rows_of_grant(const SyncKey *key, int *nkeys)
{
	SyncPolicy	policy = syncstate_policy(key->source);
	SyncAccount account = {.user_id = key->user_id,.account = key->account};

	account.sources = syncstate_sources_of_provider(NameStr(policy.provider),
													&account.nsources);
	return syncstate_store_account(&account, nkeys);
}

/* Locks the rows that syncstate_revoke_account() may park, in the order of the key. */
void
syncstate_lock_account(RowAccess *rows, const SyncKey *key)
{
	int			nkeys;
	SyncKey    *keys = rows_of_grant(key, &nkeys);
	SyncState	row;

	syncstate_rows_look(rows);
	for (int i = 0; i < nkeys; i++)
		(void) syncstate_rows_lock(rows, &keys[i], &row);
}

/*
 * Parks the rows of an account whose grant has ended, as a report of a sync does,
 * but leaves the sync in flight alone.  They are locked.
 */
void
syncstate_revoke_account(RowAccess *rows, const SyncKey *key, text *detail,
						 TimestampTz now)
{
	Report		report = {.key = *key,.error_message = detail};
	bool		is_parked = false;
	int			nkeys;
	SyncKey    *keys = rows_of_grant(key, &nkeys);

	for (int i = 0; i < nkeys; i++)
	{
		SyncState	row;
		SyncPolicy	policy;

		if (!syncstate_rows_lock(rows, &keys[i], &row) || row.parked_reason != NULL)
			continue;
		policy = syncstate_policy(row.key.source);
		syncstate_apply(TRANSITION_REVOKE, &row, &report, &policy, now);
		if (syncstate_same_key(&row.key, key))
			row.troubled_at = now;	/* of all of them, the event names this one */
		(void) syncstate_withhold(&row, EVENT_PARKED);
		is_parked |= syncstate_rows_write(rows, &row) != NULL;
	}
	if (is_parked)
		tell_parked(rows, &report, now);
}
