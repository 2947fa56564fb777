/*
 * args.c: reading and checking the arguments of SQL functions
 *
 * No function is STRICT: a null where a value is needed is an error that names
 * the argument, and not a silent null result.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "args.h"
#include "check.h"

/* Raises an error if an argument is null. */
static void
require(FunctionCallInfo fcinfo, int arg, const char *name)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be null", name)));
}

/* A text of limited size; NULL where the argument is null. */
text *
syncstate_arg_text(FunctionCallInfo fcinfo, int arg, const char *name,
				   int max_bytes)
{
	if (PG_ARGISNULL(arg))
		return NULL;

	syncstate_check_text_size(name, (text *) PG_GETARG_POINTER(arg), max_bytes);
	return PG_GETARG_TEXT_PP(arg);
}

/* A text of limited size, which must be given and not be empty. */
text *
syncstate_arg_filled_text(FunctionCallInfo fcinfo, int arg, const char *name,
						  int max_bytes)
{
	text	   *value;

	require(fcinfo, arg, name);
	value = syncstate_arg_text(fcinfo, arg, name, max_bytes);
	if (VARSIZE_ANY_EXHDR(value) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", name)));
	return value;
}

/* A user, who must be given. */
pg_uuid_t *
syncstate_arg_user(FunctionCallInfo fcinfo, int arg)
{
	require(fcinfo, arg, "user_id");
	return PG_GETARG_UUID_P(arg);
}

/* A source, which must be given. */
Oid
syncstate_arg_source(FunctionCallInfo fcinfo, int arg)
{
	require(fcinfo, arg, "source");
	return PG_GETARG_OID(arg);
}

/* An account, which must be given. */
text *
syncstate_arg_account(FunctionCallInfo fcinfo, int arg)
{
	require(fcinfo, arg, "account");
	return syncstate_arg_text(fcinfo, arg, "account", MAX_ACCOUNT_BYTES);
}

/* The key of a row from four arguments. */
SyncKey
syncstate_arg_key(FunctionCallInfo fcinfo, int user_id, int source,
				  int resource, int account)
{
	SyncKey		key;

	key.user_id = *syncstate_arg_user(fcinfo, user_id);
	key.source = syncstate_arg_source(fcinfo, source);
	require(fcinfo, resource, "resource");
	key.resource = syncstate_arg_text(fcinfo, resource, "resource",
									  MAX_RESOURCE_BYTES);
	key.account = syncstate_arg_account(fcinfo, account);
	return key;
}

/* A message, which must be given; cut to MAX_ERROR_BYTES. */
text *
syncstate_arg_message(FunctionCallInfo fcinfo, int arg, const char *name)
{
	require(fcinfo, arg, name);
	return syncstate_cut_message(PG_GETARG_TEXT_PP(arg));
}

/* A history id, tidied and checked; NULL where the argument is null or ''. */
text *
syncstate_arg_history_id(FunctionCallInfo fcinfo, int arg, const char *name)
{
	text	   *history_id = syncstate_arg_text(fcinfo, arg, name,
												MAX_TOKEN_BYTES);

	if (history_id != NULL)
		history_id = syncstate_tidy_history_id(history_id);
	if (history_id != NULL)
		syncstate_check_history_id(name, history_id);
	return history_id;
}

/* A word out of a few, which must be given. */
int
syncstate_arg_word(FunctionCallInfo fcinfo, int arg, const char *name,
				   const char *const *words, int nwords)
{
	require(fcinfo, arg, name);
	syncstate_check_text_size(name, (text *) PG_GETARG_POINTER(arg),
							  MAX_RESOURCE_BYTES);
	return syncstate_check_word(name, text_to_cstring(PG_GETARG_TEXT_PP(arg)),
								words, nwords);
}

/* A number of rows, 1 to MAX_BATCH_ROWS; -1 where null is given and allowed. */
int32
syncstate_arg_max_rows(FunctionCallInfo fcinfo, int arg, bool null_is_all)
{
	int32		max_rows;

	if (null_is_all && PG_ARGISNULL(arg))
		return -1;
	require(fcinfo, arg, "max_rows");
	max_rows = PG_GETARG_INT32(arg);
	if (max_rows < 1 || max_rows > MAX_BATCH_ROWS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_rows must be between 1 and %d", MAX_BATCH_ROWS),
				 errdetail("Got %d.", max_rows)));
	return max_rows;
}

/* A count, 0 or more; NO_COUNT where the argument is null and may be. */
int64
syncstate_arg_count(FunctionCallInfo fcinfo, int arg, const char *name,
					bool null_is_none)
{
	if (null_is_none && PG_ARGISNULL(arg))
		return NO_COUNT;
	require(fcinfo, arg, name);
	syncstate_check_count(name, PG_GETARG_INT64(arg));
	return PG_GETARG_INT64(arg);
}

/* A fencing number, which must be given. */
int64
syncstate_arg_lease(FunctionCallInfo fcinfo, int arg)
{
	require(fcinfo, arg, "lease");
	return PG_GETARG_INT64(arg);
}

/* A boolean, which must be given. */
bool
syncstate_arg_flag(FunctionCallInfo fcinfo, int arg, const char *name)
{
	require(fcinfo, arg, name);
	return PG_GETARG_BOOL(arg);
}

/* A finite time; NO_TIME where the argument is null. */
TimestampTz
syncstate_arg_time(FunctionCallInfo fcinfo, int arg, const char *name)
{
	if (PG_ARGISNULL(arg))
		return NO_TIME;
	syncstate_check_time(name, PG_GETARG_TIMESTAMPTZ(arg));
	return PG_GETARG_TIMESTAMPTZ(arg);
}

/* A duration in microseconds within limits; 0 where the argument is null. */
int64
syncstate_arg_duration(FunctionCallInfo fcinfo, int arg, const char *name,
					   int64 min, int64 max)
{
	if (PG_ARGISNULL(arg))
		return 0;
	return syncstate_check_duration(name, PG_GETARG_INTERVAL_P(arg), min, max);
}

/* An array, which must be given. */
ArrayType *
syncstate_arg_array(FunctionCallInfo fcinfo, int arg, const char *name)
{
	require(fcinfo, arg, name);
	return PG_GETARG_ARRAYTYPE_P(arg);
}

/* A JSON object, which must be given. */
Jsonb *
syncstate_arg_object(FunctionCallInfo fcinfo, int arg, const char *name)
{
	Jsonb	   *jsonb;

	require(fcinfo, arg, name);
	jsonb = PG_GETARG_JSONB_P(arg);
	if (!JB_ROOT_IS_OBJECT(jsonb))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a JSON object", name),
				 errdetail("Got a JSON %s.", syncstate_json_kind(jsonb))));
	return jsonb;
}
