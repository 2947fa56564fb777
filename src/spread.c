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

#include "spread.h"
#include "store.h"
#include "syncstate.h"

/* What the reports of an account say of each source, by its rank. */
typedef struct Told
{
	SyncPolicy *policies;
	int			nsources;
	TimestampTz *limited_until; /* NO_TIME: not limited */
	bool	   *revoked;
} Told;

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

/* Compares the keys of two rows of one account. */
static int
compare_keys(const SyncKey *a, const SyncKey *b)
{
	int			cmp = syncstate_source_rank(a->source) -
		syncstate_source_rank(b->source);

	return cmp != 0 ? cmp : syncstate_compare_text(a->resource, b->resource);
}

/* The sources of a provider, or all of them for NULL, in the order of the enum. */
Oid *
syncstate_sources_of_provider(const char *provider, int *nsources)
{
	int			n;
	SyncPolicy *all = syncstate_policies(&n);
	Oid		   *sources = palloc(Max(n, 1) * sizeof(Oid));

	*nsources = 0;
	for (int i = 0; i < n; i++)
	{
		if (provider == NULL || strcmp(NameStr(all[i].provider), provider) == 0)
			sources[(*nsources)++] = all[i].source;
	}
	return sources;
}

/* The sources that reports of an account concern, their rows' own included. */
static SyncAccount
concerned(const AccountReport *reports, int nreports)
{
	int			n;
	SyncPolicy *all = syncstate_policies(&n);
	SyncAccount account = {
		.user_id = reports[0].report->key.user_id,
		.account = reports[0].report->key.account,
		.sources = palloc(Max(n, 1) * sizeof(Oid)),
	};

	for (int i = 0; i < n; i++)
	{
		bool		is_concerned = false;

		for (int j = 0; j < nreports && !is_concerned; j++)
		{
			const Report *report = reports[j].report;
			int			rank = syncstate_source_rank(report->key.source);

			is_concerned = rank == i ||
				(reports[j].transition == TRANSITION_FAIL && rank < n &&
				 syncstate_spreads(reports[j].transition, report) &&
				 same_provider(&all[rank], &all[i]));
		}
		if (is_concerned)
			account.sources[account.nsources++] = all[i].source;
	}
	return account;
}

/* What a report that holds tells the other rows; its row is as it will be. */
static void
tell(Told *told, const AccountReport *report, const SyncState *row,
	 TimestampTz now)
{
	int			rank = syncstate_source_rank(row->key.source);
	const SyncPolicy *policy = &told->policies[rank];

	if (!syncstate_spreads(report->transition, report->report))
		return;
	if (report->transition == TRANSITION_RATE_LIMIT)
	{
		told->limited_until[rank] =
			Max(told->limited_until[rank],
				now + syncstate_limit_wait(report->report, policy));
		return;
	}
	if (!syncstate_grant_is_dead(row, report->report, policy))
		return;
	for (int i = 0; i < told->nsources; i++)
	{
		if (same_provider(&told->policies[i], policy))
			told->revoked[i] = true;
	}
}

/* Applies a report to its own row. */
static void
apply(const Told *told, const AccountReport *report, SyncState *row,
	  TimestampTz now)
{
	syncstate_apply(report->transition, row, report->report,
					&told->policies[syncstate_source_rank(row->key.source)], now);
}

/* Lets a row follow what was told of its source; false if that changes nothing. */
static bool
follow(const Told *told, SyncState *row, TimestampTz now)
{
	int			rank = syncstate_source_rank(row->key.source);
	Report		report = {.limited_until = told->limited_until[rank]};
	bool		limits = report.limited_until > row->limited_until;
	bool		revokes = told->revoked[rank] && row->parked_reason == NULL;

	if (limits)
		syncstate_apply(TRANSITION_LIMIT, row, &report, &told->policies[rank], now);
	if (revokes)
		syncstate_apply(TRANSITION_REVOKE, row, &report, &told->policies[rank], now);
	return limits || revokes;
}

/* Adds a key in its place, unless it is there. */
static SyncKey *
add_key(SyncKey *keys, int *nkeys, const SyncKey *key)
{
	int			place = 0;

	while (place < *nkeys && compare_keys(&keys[place], key) < 0)
		place++;
	if (place < *nkeys && compare_keys(&keys[place], key) == 0)
		return keys;
	keys = repalloc(keys, (*nkeys + 1) * sizeof(SyncKey));
	memmove(&keys[place + 1], &keys[place], (*nkeys - place) * sizeof(SyncKey));
	keys[place] = *key;
	(*nkeys)++;
	return keys;
}

/*
 * Applies reports of rows of one account, in the order of the key, and tells the
 * other rows.  Of several reports of one row, the first that holds is applied.
 * A missing row is made where its report, then the only one, has no lease, and in
 * its turn, since others wait for what is made; else it is passed over.  Returns
 * the time of it all.
 */
TimestampTz
syncstate_spread(RowAccess *rows, AccountReport *reports, int nreports,
				 ReportCheck applies)
{
	SyncAccount account = concerned(reports, nreports);
	const SyncKey *made = reports[0].report->has_lease ? NULL :
		&reports[0].report->key;
	SyncKey    *keys;
	int			nkeys;
	AccountReport **held;		/* of each key: the report that is applied */
	Told		told;
	TimestampTz now;
	SyncState	row;
	int			next = 0;

	told.policies = syncstate_policies(&told.nsources);
	told.limited_until = palloc(told.nsources * sizeof(TimestampTz));
	told.revoked = palloc0(told.nsources * sizeof(bool));
	for (int i = 0; i < told.nsources; i++)
		told.limited_until[i] = NO_TIME;

	keys = syncstate_store_account(&account, &nkeys);
	if (made != NULL)
		keys = add_key(keys, &nkeys, made);
	held = palloc0(Max(nkeys, 1) * sizeof(AccountReport *));
	syncstate_rows_look(rows);
	for (int i = 0; i < nkeys; i++)
	{
		if (made != NULL && compare_keys(&keys[i], made) == 0)
			syncstate_rows_lock_or_make(rows, made, true, &row);
		else
			(void) syncstate_rows_lock(rows, &keys[i], &row);
	}
	now = syncstate_now();		/* after the waits for the locks, not before them */

	/* both are in the order of the key */
	for (int i = 0; i < nkeys; i++)
	{
		while (next < nreports &&
			   compare_keys(&reports[next].report->key, &keys[i]) < 0)
			next++;
		if (next == nreports ||
			compare_keys(&reports[next].report->key, &keys[i]) > 0 ||
			!syncstate_rows_lock(rows, &keys[i], &row))
			continue;
		for (int j = next; j < nreports && held[i] == NULL; j++)
		{
			if (compare_keys(&reports[j].report->key, &keys[i]) > 0)
				break;
			if (applies(reports[j].transition, &row, reports[j].report, now))
				held[i] = &reports[j];
		}
		if (held[i] == NULL)
			continue;
		apply(&told, held[i], &row, now);
		tell(&told, held[i], &row, now);
	}

	for (int i = 0; i < nkeys; i++)
	{
		HeapTuple	written;
		bool		changes;

		if (!syncstate_rows_lock(rows, &keys[i], &row))
			continue;
		if (held[i] != NULL)
			apply(&told, held[i], &row, now);
		changes = follow(&told, &row, now);
		if (held[i] == NULL && !changes)
			continue;
		written = syncstate_rows_write(rows, &row);
		if (held[i] != NULL)
			held[i]->result = written;
	}
	return now;
}
