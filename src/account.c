/*
 * account.c: calls about all rows of an account
 *
 * Each locks the rows that it may write in the order of the key, as every call
 * about several rows does.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "access.h"
#include "args.h"
#include "request.h"
#include "store.h"
#include "syncstate.h"
#include "transition.h"

PG_FUNCTION_INFO_V1(syncstate_connect_account);
PG_FUNCTION_INFO_V1(syncstate_pause_account);
PG_FUNCTION_INFO_V1(syncstate_resume_account);
PG_FUNCTION_INFO_V1(syncstate_disconnect_account);
PG_FUNCTION_INFO_V1(syncstate_request_account);
PG_FUNCTION_INFO_V1(syncstate_set_sync_resources);

/* The account of the arguments user_id, account, and provider, which may be null. */
static SyncAccount
read_account(FunctionCallInfo fcinfo)
{
	SyncAccount account = {
		.user_id = *syncstate_arg_user(fcinfo, 0),
		.account = syncstate_arg_account(fcinfo, 1),
	};
	text	   *provider = syncstate_arg_text(fcinfo, 2, "provider",
											  MAX_LABEL_BYTES);

	account.sources =
		syncstate_sources_of_provider(provider == NULL ? NULL :
									  text_to_cstring(provider),
									  &account.nsources);
	if (provider != NULL && account.nsources == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("provider must be that of a source"),
				 errdetail("Got \"%s\".", text_to_cstring(provider)),
				 errhint("get_sync_policy() returns the provider of a source.")));
	return account;
}

/* Begins a call: finds the rows of its account, and prepares its result. */
static SyncKey *
begin_call(FunctionCallInfo fcinfo, int *nkeys)
{
	SyncAccount account = read_account(fcinfo);

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	return syncstate_store_account(&account, nkeys);
}

/*
 * Applies a transition to each row of an account; returns the rows.  That they are
 * parked is one event.
 */
static Datum
apply_to_each(FunctionCallInfo fcinfo, Transition transition)
{
	int			nkeys;
	SyncKey    *keys = begin_call(fcinfo, &nkeys);
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SyncPolicy	policy = {.source = InvalidOid};
	Report		report = {0};
	RowAccess	rows;
	const SyncKey *parked = NULL;

	syncstate_rows_open(&rows);
	syncstate_rows_look(&rows);
	for (int i = 0; i < nkeys; i++)
	{
		SyncState	row;
		bool		is_parked;
		HeapTuple	written;

		/* only connecting brings back what is gone */
		if (!syncstate_rows_lock(&rows, &keys[i], &row) ||
			(transition != TRANSITION_CONNECT &&
			 syncstate_is_parked_for(&row, PARKED_GONE)))
			continue;
		if (policy.source != row.key.source)
			policy = syncstate_policy(row.key.source);
		syncstate_apply(transition, &row, &report, &policy, syncstate_now());
		is_parked = syncstate_withhold(&row, EVENT_PARKED);
		written = syncstate_rows_write(&rows, &row);
		if (written == NULL)
			continue;
		if (is_parked)
			parked = &keys[i];
		tuplestore_puttuple(rsinfo->setResult, written);
		if (transition != TRANSITION_PAUSE)
			syncstate_wake_workers(&policy);
	}
	if (parked != NULL)
	{
		EventRow	event = {
			.event = EVENT_PARKED,
			.at = syncstate_now(),
			.key = parked,
			.of_account = true,
			.lease = NO_COUNT,
			.reason = cstring_to_text(syncstate_parked_reasons[PARKED_PAUSED]),
		};

		syncstate_news_event(&rows.news, &event);
	}
	syncstate_rows_close(&rows);
	SPI_finish();
	return (Datum) 0;
}

/* syncstate_connect_account(...) -> setof sync_state: see doc/syncstate.md. */
Datum
syncstate_connect_account(PG_FUNCTION_ARGS)
{
	return apply_to_each(fcinfo, TRANSITION_CONNECT);
}

/* syncstate_pause_account(...) -> setof sync_state: see doc/syncstate.md. */
Datum
syncstate_pause_account(PG_FUNCTION_ARGS)
{
	return apply_to_each(fcinfo, TRANSITION_PAUSE);
}

/* syncstate_resume_account(...) -> setof sync_state: see doc/syncstate.md. */
Datum
syncstate_resume_account(PG_FUNCTION_ARGS)
{
	return apply_to_each(fcinfo, TRANSITION_RESUME);
}

/* syncstate_disconnect_account(...) -> setof sync_state: see doc/syncstate.md. */
Datum
syncstate_disconnect_account(PG_FUNCTION_ARGS)
{
	int			nkeys;
	SyncKey    *keys = begin_call(fcinfo, &nkeys);
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	for (int i = 0; i < nkeys; i++)
	{
		HeapTuple	deleted = syncstate_store_take(&keys[i]);

		if (deleted != NULL)
			tuplestore_puttuple(rsinfo->setResult, deleted);
	}
	SPI_finish();
	return (Datum) 0;
}

/*
 * syncstate_request_account(...) -> setof (source, resource): see
 * doc/syncstate.md.
 */
Datum
syncstate_request_account(PG_FUNCTION_ARGS)
{
	int			nkeys;
	SyncKey    *keys = begin_call(fcinfo, &nkeys);
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	for (int i = 0; i < nkeys; i++)
	{
		Datum		values[2] = {
			ObjectIdGetDatum(keys[i].source),
			PointerGetDatum(keys[i].resource),
		};
		bool		nulls[2] = {false};

		if (syncstate_request(&keys[i]) == REQUEST_COMES)
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
								 nulls);
	}
	SPI_finish();
	return (Datum) 0;
}

/* qsort comparator: in the order of the key. */
static int
compare_resources(const void *a, const void *b)
{
	return syncstate_compare_text(*(text *const *) a, *(text *const *) b);
}

/*
 * The resources of an argument, each once and in the order of the key, without
 * '', which is the account's own.
 */
static text **
read_resources(FunctionCallInfo fcinfo, int arg, int *nresources)
{
	ArrayType  *array = syncstate_arg_array(fcinfo, arg, "resources");
	Datum	   *elements;
	bool	   *nulls;
	int			n;
	text	  **resources;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls,
					  &n);
	if (n > MAX_BATCH_ROWS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("resources must have at most %d elements", MAX_BATCH_ROWS),
				 errdetail("Got %d.", n)));
	resources = palloc(Max(n, 1) * sizeof(text *));
	*nresources = 0;
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("resources must not contain a null")));
		resources[*nresources] = DatumGetTextPP(elements[i]);
		syncstate_check_text_size("resource", resources[*nresources],
								  MAX_RESOURCE_BYTES);
		if (VARSIZE_ANY_EXHDR(resources[*nresources]) > 0)
			(*nresources)++;
	}
	qsort(resources, *nresources, sizeof(text *), compare_resources);
	n = *nresources;
	*nresources = 0;
	for (int i = 0; i < n; i++)
	{
		if (i == 0 || compare_resources(&resources[i], &resources[i - 1]) != 0)
			resources[(*nresources)++] = resources[i];
	}
	return resources;
}

/*
 * Makes and locks a row that was not there; false if somebody else has made it
 * meanwhile.
 */
static bool
lock_new(RowAccess *rows, const SyncKey *key, TimestampTz limited_until,
		 SyncState *row)
{
	for (int try = 0; try < MAX_TRIES; try++)
	{
		bool		made = syncstate_store_make(key, limited_until);

		syncstate_rows_look(rows);
		if (syncstate_rows_lock(rows, key, row))
			return made;
	}
	syncstate_no_such_row(key);
}

/*
 * Makes a row follow whether its resource is there; NULL: nothing to tell.
 *
 * *limited_until is the limit that new rows get.  A row that had to be waited
 * for may tell of a longer one.
 */
static const char *
set_resource(RowAccess *rows, const SyncKey *key, bool is_listed, bool had_row,
			 TimestampTz *limited_until, const SyncPolicy *policy)
{
	Report		report = {.key = *key};
	SyncState	row;
	const char *change;
	Transition	transition;

	/* others may delete rows meanwhile */
	had_row = had_row && syncstate_rows_lock(rows, key, &row);
	if (!had_row && !is_listed)
		return NULL;
	if (!had_row)
		had_row = !lock_new(rows, key, *limited_until, &row);
	*limited_until = Max(*limited_until, row.limited_until);

	if (!had_row)
	{
		transition = TRANSITION_CONNECT;
		change = "added";
	}
	else if (is_listed && syncstate_is_parked_for(&row, PARKED_GONE))
	{
		transition = TRANSITION_CONNECT;
		change = "returned";
	}
	else if (is_listed || syncstate_is_parked_for(&row, PARKED_PAUSED))
		return "kept";			/* a pause is the user's own */
	else if (syncstate_is_parked_for(&row, PARKED_GONE))
		return NULL;
	else
	{
		transition = TRANSITION_LEAVE;
		change = "gone";
	}
	syncstate_apply(transition, &row, &report, policy, syncstate_now());
	return syncstate_rows_write(rows, &row) != NULL ? change : NULL;
}

/*
 * syncstate_set_sync_resources(...) -> setof (resource, change): see
 * doc/syncstate.md.
 *
 * What is listed and the rows that there are, both in the order of the key, are
 * merged.
 */
Datum
syncstate_set_sync_resources(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			source = syncstate_arg_source(fcinfo, 1);
	SyncAccount account = {
		.user_id = *syncstate_arg_user(fcinfo, 0),
		.account = syncstate_arg_account(fcinfo, 3),
		.sources = &source,
		.nsources = 1,
	};
	int			nlisted;
	text	  **listed = read_resources(fcinfo, 2, &nlisted);
	SyncPolicy	policy = syncstate_policy(source);
	RowAccess	rows;
	TimestampTz limited_until;
	SyncKey    *keys;
	int			nkeys;
	bool		connected = false;

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	keys = syncstate_store_account(&account, &nkeys);
	limited_until = syncstate_store_limit(&account);
	syncstate_rows_open(&rows);
	syncstate_rows_look(&rows);
	for (int i = 0, j = 0; i < nkeys || j < nlisted;)
	{
		int			cmp = i == nkeys ? 1 : j == nlisted ? -1 :
			syncstate_compare_text(keys[i].resource, listed[j]);
		SyncKey		key = {
			.user_id = account.user_id,
			.account = account.account,
			.source = source,
			.resource = cmp <= 0 ? keys[i].resource : listed[j],
		};
		const char *change = NULL;

		i += cmp <= 0;
		j += cmp >= 0;
		if (VARSIZE_ANY_EXHDR(key.resource) > 0)
			change = set_resource(&rows, &key, cmp >= 0, cmp <= 0,
								  &limited_until, &policy);
		if (change != NULL)
		{
			Datum		values[2] = {
				PointerGetDatum(key.resource),
				CStringGetTextDatum(change),
			};
			bool		nulls[2] = {false};

			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
								 nulls);
			connected |= strcmp(change, "added") == 0 ||
				strcmp(change, "returned") == 0;
		}
	}
	syncstate_rows_close(&rows);
	SPI_finish();

	if (connected)
		syncstate_wake_workers(&policy);
	return (Datum) 0;
}
