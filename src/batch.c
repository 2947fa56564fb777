/* batch.c: report_syncs(): many reports in one call */
#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "access.h"
#include "check.h"
#include "source.h"
#include "spread.h"
#include "syncstate.h"
#include "transition.h"

static const Transition transition_of[NUM_REPORTED_OUTCOMES] = {
	[OUTCOME_COMPLETED] = TRANSITION_COMPLETE,
	[OUTCOME_FAILED] = TRANSITION_FAIL,
	[OUTCOME_RATE_LIMITED] = TRANSITION_RATE_LIMIT,
	[OUTCOME_RELEASED] = TRANSITION_RELEASE,
};

/* A report of a batch. */
typedef struct BatchReport
{
	Report		report;
	Outcome		outcome;
	int			position;		/* in the array */
	int			source_rank;	/* the label's place in the enum */
} BatchReport;

/* A report and the row it was applied to, as it is now. */
typedef struct Applied
{
	const BatchReport *report;
	HeapTuple	result;
} Applied;

PG_FUNCTION_INFO_V1(syncstate_report_syncs);

/* A key of a report. */
typedef struct Key
{
	JsonKey		json;
	int			outcomes;		/* to which it belongs */
	int			required;		/* for which it must be given */
	void		(*read) (const struct Key *key, const char *word, void *field);
	size_t		field;			/* where in a BatchReport */
	int			limit;			/* bytes of a text, or number of words */
	const char *const *words;
} Key;

static void
read_uuid(const Key *key, const char *word, void *field)
{
	*(pg_uuid_t *) field =
		*DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(word)));
}

static void
read_source(const Key *key, const char *word, void *field)
{
	*(Oid *) field =
		DatumGetObjectId(DirectFunctionCall2(enum_in, CStringGetDatum(word),
											 ObjectIdGetDatum(syncstate_ids()->source_type)));
}

static void
read_text(const Key *key, const char *word, void *field)
{
	syncstate_check_size(key->json.name, strlen(word), key->limit);
	*(text **) field = cstring_to_text(word);
}

static void
read_message(const Key *key, const char *word, void *field)
{
	*(text **) field = syncstate_cut_message(cstring_to_text(word));
}

static void
read_history_id(const Key *key, const char *word, void *field)
{
	text	  **history_id = field;

	read_text(key, word, field);
	*history_id = syncstate_tidy_history_id(*history_id);
	if (*history_id != NULL)
		syncstate_check_history_id(key->json.name, *history_id);
}

static void
read_lease(const Key *key, const char *word, void *field)
{
	*(int64 *) field =
		DatumGetInt64(DirectFunctionCall1(int8in, CStringGetDatum(word)));
}

static void
read_count(const Key *key, const char *word, void *field)
{
	read_lease(key, word, field);
	syncstate_check_count(key->json.name, *(int64 *) field);
}

static void
read_time(const Key *key, const char *word, void *field)
{
	*(TimestampTz *) field =
		DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
												CStringGetDatum(word),
												ObjectIdGetDatum(InvalidOid),
												Int32GetDatum(-1)));
	syncstate_check_time(key->json.name, *(TimestampTz *) field);
}

static Interval *
interval_of(const char *word)
{
	return DatumGetIntervalP(DirectFunctionCall3(interval_in,
												 CStringGetDatum(word),
												 ObjectIdGetDatum(InvalidOid),
												 Int32GetDatum(-1)));
}

static void
read_wait(const Key *key, const char *word, void *field)
{
	*(int64 *) field = syncstate_clamped_wait(interval_of(word));
}

static void
read_delay(const Key *key, const char *word, void *field)
{
	*(int64 *) field = syncstate_check_duration(key->json.name, interval_of(word),
												0, MAX_RELEASE_DELAY);
}

static void
read_word(const Key *key, const char *word, void *field)
{
	*(int *) field = syncstate_check_word(key->json.name, word, key->words, key->limit);
}

/* A failure is never a whole source's. */
static void
read_scope(const Key *key, const char *word, void *field)
{
	const BatchReport *report = (BatchReport *) ((char *) field - key->field);

	*(Scope *) field = syncstate_check_word(key->json.name, word, syncstate_scopes,
											report->outcome == OUTCOME_FAILED ?
											NUM_FAILURE_SCOPES : NUM_LIMIT_SCOPES);
}

#define OF_ALL			((1 << NUM_REPORTED_OUTCOMES) - 1)
#define OF(outcome)		(1 << OUTCOME_##outcome)
#define AT(field)		offsetof(BatchReport, field)

static const Key keys[] = {
	{{"user_id", JSON_TEXT}, OF_ALL, OF_ALL, read_uuid, AT(report.key.user_id), 0, NULL},
	{{"source", JSON_TEXT}, OF_ALL, OF_ALL, read_source, AT(report.key.source), 0, NULL},
	{{"account", JSON_TEXT}, OF_ALL, 0, read_text, AT(report.key.account), MAX_ACCOUNT_BYTES, NULL},
	{{"resource", JSON_TEXT}, OF_ALL, 0, read_text, AT(report.key.resource), MAX_RESOURCE_BYTES, NULL},
	{{"lease", JSON_NUMBER}, OF_ALL, OF_ALL, read_lease, AT(report.lease), 0, NULL},
	{{"outcome", JSON_TEXT}, OF_ALL, OF_ALL, read_word, AT(outcome), NUM_REPORTED_OUTCOMES, syncstate_outcomes},
	{{"items_synced", JSON_NUMBER}, OF(COMPLETED), 0, read_count, AT(report.items_synced), 0, NULL},
	{{"sync_token", JSON_TEXT}, OF(COMPLETED), 0, read_text, AT(report.sync_token), MAX_TOKEN_BYTES, NULL},
	{{"history_id", JSON_NUMBER}, OF(COMPLETED), 0, read_history_id, AT(report.history_id), MAX_TOKEN_BYTES, NULL},
	{{"updated_min", JSON_TIME}, OF(COMPLETED), 0, read_time, AT(report.updated_min), 0, NULL},
	{{"error_message", JSON_TEXT}, OF(FAILED), OF(FAILED), read_message, AT(report.error_message), 0, NULL},
	{{"kind", JSON_TEXT}, OF(FAILED), 0, read_word, AT(report.kind), NUM_FAILURE_KINDS, syncstate_failure_kinds},
	{{"retry_after", JSON_INTERVAL}, OF(RATE_LIMITED), 0, read_wait, AT(report.retry_after), 0, NULL},
	{{"delay", JSON_INTERVAL}, OF(RELEASED), 0, read_delay, AT(report.delay), 0, NULL},
	{{"scope", JSON_TEXT}, OF(FAILED) | OF(RATE_LIMITED), 0, read_scope, AT(report.scope), 0, NULL},
};

/* Error context: which report of a batch is being read. */
static void
report_context(void *arg)
{
	errcontext("report %d of results", *(int *) arg + 1);
}

/* The text of a JSON string or number; NULL if null. */
static char *
json_text(const JsonKey *key, JsonbValue *value)
{
	syncstate_check_json(key, value);
	if (value->type == jbvNull)
		return NULL;
	if (value->type == jbvString)
		return pnstrdup(value->val.string.val, value->val.string.len);
	return DatumGetCString(DirectFunctionCall1(numeric_out,
											   NumericGetDatum(value->val.numeric)));
}

/*
 * Reads the values of an object in one pass, in whatever order it keeps its
 * keys; false if it has one that no report has.
 */
static bool
read_words(JsonbContainer *object, char **words, bool *present)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbIteratorToken token;
	JsonbValue	value;
	bool		all_known = true;
	size_t		key = lengthof(keys);

	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			for (key = 0; key < lengthof(keys); key++)
			{
				if (strlen(keys[key].json.name) == (size_t) value.val.string.len &&
					memcmp(keys[key].json.name, value.val.string.val,
						   value.val.string.len) == 0)
					break;
			}
			all_known = all_known && key < lengthof(keys);
		}
		else if (token == WJB_VALUE && key < lengthof(keys))
		{
			present[key] = true;
			words[key] = json_text(&keys[key].json, &value);
		}
	}
	return all_known;
}

/* Raises the error of a key that does not belong to the outcome. */
static void
refuse_unknown_key(JsonbContainer *object, Outcome outcome)
{
	JsonKey		known[lengthof(keys)];
	int			nknown = 0;

	for (size_t i = 0; i < lengthof(keys); i++)
	{
		if (keys[i].outcomes & (1 << outcome))
			known[nknown++] = keys[i].json;
	}
	syncstate_check_object("report", object, known, nknown);
}

static void
must_be_given(const Key *key)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s must not be null", key->json.name)));
}

/* Reads one report, with the checks of the single calls. */
static void
read_report(JsonbContainer *object, BatchReport *report)
{
	char	   *words[lengthof(keys)] = {NULL}; /* NULL: null or absent */
	bool		present[lengthof(keys)] = {false};
	bool		all_known = read_words(object, words, present);
	int			outcome;

	report->report.has_lease = true;
	report->report.scope = SCOPE_ACCOUNT;
	report->report.updated_min = NO_TIME;
	report->report.key.account = cstring_to_text("");
	report->report.key.resource = cstring_to_text("");
	for (size_t i = 0; i < lengthof(keys); i++)
	{
		if (keys[i].required == OF_ALL && words[i] == NULL)
			must_be_given(&keys[i]);
	}
	for (size_t i = 0; i < lengthof(keys); i++)
	{
		if (AT(outcome) == keys[i].field)
			read_word(&keys[i], words[i], &report->outcome);
	}
	outcome = 1 << report->outcome;
	for (size_t i = 0; i < lengthof(keys); i++)
		all_known = all_known && (!present[i] || (keys[i].outcomes & outcome));
	if (!all_known)
		refuse_unknown_key(object, report->outcome);

	for (size_t i = 0; i < lengthof(keys); i++)
	{
		if (words[i] != NULL)
			keys[i].read(&keys[i], words[i], (char *) report + keys[i].field);
		else if (keys[i].required & outcome)
			must_be_given(&keys[i]);
	}
	report->source_rank = syncstate_source_rank(report->report.key.source);
}

/* Reads a batch of reports; an error names the report. */
static BatchReport *
read_reports(Jsonb *results, int *nreports)
{
	BatchReport *reports;
	int			n = 0;
	JsonbIterator *it;
	JsonbValue	value;
	JsonbIteratorToken token;
	ErrorContextCallback context;

	if (!JB_ROOT_IS_ARRAY(results) || JB_ROOT_IS_SCALAR(results))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("results must be a JSON array"),
				 errdetail("Got a JSON %s.", syncstate_json_kind(results))));
	if (JB_ROOT_COUNT(results) > MAX_BATCH_ROWS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("results must have at most %d reports", MAX_BATCH_ROWS),
				 errdetail("Got %d.", JB_ROOT_COUNT(results))));
	reports = palloc0(Max(JB_ROOT_COUNT(results), 1) * sizeof(BatchReport));

	context.callback = report_context;
	context.arg = &n;
	context.previous = error_context_stack;
	error_context_stack = &context;

	it = JsonbIteratorInit(&results->root);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		if (value.type != jbvBinary ||
			!JsonContainerIsObject(value.val.binary.data))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a report must be a JSON object"),
					 errdetail("Got a JSON %s.", JsonbTypeName(&value))));
		read_report(value.val.binary.data, &reports[n]);
		reports[n].position = n;
		n++;
	}

	error_context_stack = context.previous;
	*nreports = n;
	return reports;
}

/*
 * qsort comparator: the order in which all batches lock, then as given.  It is
 * that of the primary key: forget_users() locks in it too.
 */
static int
compare_reports(const void *a, const void *b)
{
	const BatchReport *x = *(const BatchReport *const *) a;
	const BatchReport *y = *(const BatchReport *const *) b;
	int			cmp = memcmp(&x->report.key.user_id, &y->report.key.user_id,
							 UUID_LEN);

	if (cmp == 0)
		cmp = syncstate_compare_text(x->report.key.account,
									 y->report.key.account);
	if (cmp == 0)
		cmp = x->source_rank - y->source_rank;
	if (cmp == 0)
		cmp = syncstate_compare_text(x->report.key.resource,
									 y->report.key.resource);
	if (cmp == 0)
		cmp = x->position - y->position;
	return cmp;
}

static bool
all_are_stale(const SyncState *row, const BatchReport **reports, int nreports)
{
	for (int i = 0; i < nreports; i++)
	{
		if (!syncstate_lease_is_stale(row, reports[i]->report.lease))
			return false;
	}
	return true;
}

/* The first of the reports of a row whose lease is held; NULL if none is. */
static const BatchReport *
held_report(const SyncState *row, const BatchReport **reports, int nreports)
{
	for (int i = 0; i < nreports; i++)
	{
		if (syncstate_lease_is_held(row, reports[i]->report.lease))
			return reports[i];
	}
	return NULL;
}

/*
 * Applies to a row the first report of it whose lease is held: at most one is,
 * since each ends the run.  Returns false if none is.  *now moves on when there
 * was a lock to wait for.
 */
static bool
apply_one_of(RowAccess *rows, const BatchReport **reports, int nreports,
			 const SyncPolicy *policy, TimestampTz *now, Applied *applied)
{
	const SyncKey *key = &reports[0]->report.key;
	SyncState	row;
	const BatchReport *report;

	if (syncstate_rows_read(rows, key, &row))
	{
		/* no use in waiting for the row */
		if (all_are_stale(&row, reports, nreports))
			return false;
		report = held_report(&row, reports, nreports);
		if (report != NULL)
		{
			syncstate_apply(transition_of[report->outcome], &row,
							&report->report, policy, *now);
			applied->report = report;
			if (syncstate_rows_try(rows, &row, &applied->result))
				return true;
		}
	}

	if (!syncstate_rows_lock(rows, key, &row))
		return false;
	report = held_report(&row, reports, nreports);
	if (report == NULL)
		return false;
	*now = syncstate_now();
	syncstate_apply(transition_of[report->outcome], &row, &report->report,
					policy, *now);
	applied->report = report;
	applied->result = syncstate_rows_write(rows, &row);
	return applied->result != NULL;
}

/*
 * Applies reports of rows of one account, each row's by itself.  *policy is that
 * of the source at hand.  Returns how many were applied.
 */
static int
apply_to_rows(RowAccess *rows, const BatchReport **reports, int nreports,
			  SyncPolicy *policy, TimestampTz *now, Applied *applied)
{
	int			napplied = 0;

	for (int first = 0, end; first < nreports; first = end)
	{
		for (end = first + 1; end < nreports; end++)
		{
			if (!syncstate_same_key(&reports[end]->report.key,
									&reports[first]->report.key))
				break;
		}
		if (policy->source != reports[first]->report.key.source)
			*policy = syncstate_policy(reports[first]->report.key.source);
		if (apply_one_of(rows, &reports[first], end - first, policy, now,
						 &applied[napplied]))
			napplied++;
	}
	return napplied;
}

static bool
is_held(Transition transition, const SyncState *row, const Report *report,
		TimestampTz now)
{
	return syncstate_lease_is_held(row, report->lease);
}

/* The same, where a report concerns the account's other rows too. */
static int
apply_to_account(RowAccess *rows, const BatchReport **reports, int nreports,
				 TimestampTz *now, Applied *applied)
{
	AccountReport *of_account = palloc0(nreports * sizeof(AccountReport));
	int			napplied = 0;

	for (int i = 0; i < nreports; i++)
	{
		of_account[i].transition = transition_of[reports[i]->outcome];
		of_account[i].report = &reports[i]->report;
	}
	*now = syncstate_spread(rows, of_account, nreports, is_held);
	for (int i = 0; i < nreports; i++)
	{
		if (of_account[i].result == NULL)
			continue;
		applied[napplied].report = reports[i];
		applied[napplied++].result = of_account[i].result;
	}
	return napplied;
}

static bool
any_spreads(const BatchReport **reports, int nreports)
{
	for (int i = 0; i < nreports; i++)
	{
		if (syncstate_spreads(transition_of[reports[i]->outcome],
							  &reports[i]->report))
			return true;
	}
	return false;
}

static bool
same_account(const BatchReport *a, const BatchReport *b)
{
	return memcmp(&a->report.key.user_id, &b->report.key.user_id, UUID_LEN) == 0 &&
		syncstate_same_text(a->report.key.account, b->report.key.account);
}

/* qsort comparator: as given. */
static int
compare_applied(const void *a, const void *b)
{
	return ((const Applied *) a)->report->position -
		((const Applied *) b)->report->position;
}

/*
 * Pauses sources whose limit was hit as a whole: each once, for the longest
 * wait of all reports, in the order of the enum, so that no two batches wait
 * for each other.
 */
static void
limit_sources(const Applied *applied, int napplied, TimestampTz now)
{
	int			nsources;
	SyncPolicy *policies = syncstate_policies(&nsources);
	int64	   *waits = palloc0(Max(nsources, 1) * sizeof(int64));

	for (int i = 0; i < napplied; i++)
	{
		const BatchReport *report = applied[i].report;
		int			rank = report->source_rank;

		if (report->report.scope == SCOPE_SOURCE && rank < nsources)
			waits[rank] = Max(waits[rank],
							  syncstate_limit_wait(&report->report,
												   &policies[rank]));
	}
	for (int i = 0; i < nsources; i++)
	{
		if (waits[i] > 0)
			syncstate_pause_source(policies[i].source, now + waits[i], now);
	}
}

/* syncstate_report_syncs(results) -> setof sync_state: see doc/syncstate.md. */
Datum
syncstate_report_syncs(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	BatchReport *reports;
	const BatchReport **sorted;
	int			nreports;
	RowAccess	rows;
	SyncPolicy	policy = {.source = InvalidOid};
	Applied    *applied;
	int			napplied = 0;
	TimestampTz now;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("results must not be null")));
	reports = read_reports(PG_GETARG_JSONB_P(0), &nreports);
	InitMaterializedSRF(fcinfo, 0);
	if (nreports == 0)
		return (Datum) 0;

	SPI_connect();
	applied = palloc(nreports * sizeof(Applied));
	syncstate_rows_open(&rows);
	syncstate_rows_look(&rows);
	now = syncstate_now();

	/* in the order in which every batch locks */
	sorted = palloc(nreports * sizeof(BatchReport *));
	for (int i = 0; i < nreports; i++)
		sorted[i] = &reports[i];
	qsort(sorted, nreports, sizeof(BatchReport *), compare_reports);
	for (int first = 0, end; first < nreports; first = end)
	{
		for (end = first + 1; end < nreports; end++)
		{
			if (!same_account(sorted[end], sorted[first]))
				break;
		}
		napplied += any_spreads(&sorted[first], end - first) ?
			apply_to_account(&rows, &sorted[first], end - first, &now,
							 &applied[napplied]) :
			apply_to_rows(&rows, &sorted[first], end - first, &policy, &now,
						  &applied[napplied]);
	}
	syncstate_rows_close(&rows);

	qsort(applied, napplied, sizeof(Applied), compare_applied);
	for (int i = 0; i < napplied; i++)
		tuplestore_puttuple(rsinfo->setResult, applied[i].result);
	limit_sources(applied, napplied, now);
	SPI_finish();
	return (Datum) 0;
}
