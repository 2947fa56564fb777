/*-------------------------------------------------------------------------
 *
 * args.c
 *		Reading and checking the arguments of SQL functions
 *
 * No function is STRICT: a null where a value is needed is an error that names
 * the argument, and not a silent null result.  Every check of an argument
 * raises 22023 and tells the argument, its limits and the value.
 *
 * src/args.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "syncstate.h"

/* Raises an error if an argument is null. */
static void
require(FunctionCallInfo fcinfo, int arg, const char *name)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be null", name)));
}

/* The key of a row from three arguments. */
SyncKey
syncstate_arg_key(FunctionCallInfo fcinfo, int user_id, int source,
				  int resource)
{
	SyncKey		key;

	require(fcinfo, user_id, "user_id");
	require(fcinfo, source, "source");
	require(fcinfo, resource, "resource");
	key.user_id = *PG_GETARG_UUID_P(user_id);
	key.source = PG_GETARG_OID(source);
	key.resource = syncstate_arg_text(fcinfo, resource, "resource",
									  MAX_RESOURCE_BYTES);
	return key;
}

/* A source, which must be given. */
Oid
syncstate_arg_source(FunctionCallInfo fcinfo, int arg)
{
	require(fcinfo, arg, "source");
	return PG_GETARG_OID(arg);
}

/* A text of limited size; NULL where the argument is null. */
text *
syncstate_arg_text(FunctionCallInfo fcinfo, int arg, const char *name,
				   int max_bytes)
{
	if (PG_ARGISNULL(arg))
		return NULL;

	/* the size is known before the value is brought into memory */
	syncstate_check_size(name, toast_raw_datum_size(PG_GETARG_DATUM(arg)) - VARHDRSZ,
						 max_bytes);
	return PG_GETARG_TEXT_PP(arg);
}

/* A word out of a few, which must be given. */
int
syncstate_arg_word(FunctionCallInfo fcinfo, int arg, const char *name,
				   const char *const *words, int nwords)
{
	require(fcinfo, arg, name);
	syncstate_check_size(name, toast_raw_datum_size(PG_GETARG_DATUM(arg)) - VARHDRSZ,
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
				 errmsg("%s must be a JSON object", name)));
	return jsonb;
}

/* Checks that every key of a JSON object is one of a few. */
void
syncstate_check_keys(const char *name, JsonbContainer *object,
					 const char *const *keys, int nkeys)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbValue	value;
	JsonbIteratorToken token;

	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		bool		known = false;

		if (token != WJB_KEY)
			continue;
		for (int i = 0; i < nkeys && !known; i++)
			known = strlen(keys[i]) == (size_t) value.val.string.len &&
				memcmp(keys[i], value.val.string.val, value.val.string.len) == 0;
		if (!known)
		{
			StringInfoData list;

			initStringInfo(&list);
			for (int i = 0; i < nkeys; i++)
				appendStringInfo(&list, "%s%s", i > 0 ? ", " : "", keys[i]);
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s has no key \"%.*s\"", name,
							pg_mbcliplen(value.val.string.val,
										 value.val.string.len, 100),
							value.val.string.val),
					 errhint("Keys are %s.", list.data)));
		}
	}
}

void
syncstate_check_size(const char *name, Size bytes, Size max_bytes)
{
	if (bytes > max_bytes)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be at most %zu bytes long", name, max_bytes),
				 errdetail("Got %zu bytes.", bytes)));
}

void
syncstate_check_count(const char *name, int64 count)
{
	if (count < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be 0 or more", name),
				 errdetail("Got %lld.", (long long) count)));
}

void
syncstate_check_amount(const char *name, double amount)
{
	if (!(amount >= 0 && amount <= MAX_AMOUNT))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between 0 and %g", name, MAX_AMOUNT),
				 errdetail("Got %g.", amount)));
}

void
syncstate_check_time(const char *name, TimestampTz time)
{
	if (!IS_LEGAL_TIME(time))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a time of the years 1 to 9999", name),
				 errdetail("Got %s.", timestamptz_to_str(time))));
}

/* Whether an interval is within limits, and of a length that has no months. */
bool
syncstate_is_duration(const Interval *interval, int64 min, int64 max)
{
	double		usecs = (double) interval->time +
		(double) interval->day * USECS_PER_DAY;

	return interval->month == 0 && usecs >= min && usecs <= max;
}

/* Returns the microseconds. */
int64
syncstate_check_duration(const char *name, const Interval *interval,
						 int64 min, int64 max)
{
	if (!syncstate_is_duration(interval, min, max))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between %lld second%s and %lld day%s, without months",
						name, (long long) (min / USECS_PER_SEC),
						min == USECS_PER_SEC ? "" : "s",
						(long long) (max / USECS_PER_DAY),
						max == USECS_PER_DAY ? "" : "s"),
				 errdetail("Got %s.",
						   DatumGetCString(DirectFunctionCall1(interval_out,
															   IntervalPGetDatum(interval))))));
	return syncstate_interval_usecs(interval);
}

/* Returns the number of the word. */
int
syncstate_check_word(const char *name, const char *word,
					 const char *const *words, int nwords)
{
	StringInfoData list;

	for (int i = 0; i < nwords; i++)
	{
		if (strcmp(word, words[i]) == 0)
			return i;
	}

	initStringInfo(&list);
	for (int i = 0; i < nwords; i++)
		appendStringInfo(&list, "%s\"%s\"",
						 i == 0 ? "" : i == nwords - 1 ? " or " : ", ",
						 words[i]);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s must be %s", name, list.data),
			 errdetail("Got \"%.*s\".", pg_mbcliplen(word, strlen(word), 100),
					   word)));
	return 0;					/* keep compiler quiet */
}

/*
 * A history id as Gmail sends it, without leading zeros; NULL for an empty
 * one.  What is no number stays as it is, for the check to tell.
 */
text *
syncstate_tidy_history_id(text *history_id)
{
	const char *digits = VARDATA_ANY(history_id);
	int			len = VARSIZE_ANY_EXHDR(history_id);
	int			zeros = 0;

	if (len == 0)
		return NULL;
	while (zeros < len - 1 && digits[zeros] == '0')
		zeros++;
	if (zeros == 0 || digits[zeros] < '0' || digits[zeros] > '9')
		return history_id;
	return cstring_to_text_with_len(digits + zeros, len - zeros);
}

/* Whether a history id is tidy: an unsigned 64-bit decimal. */
bool
syncstate_is_history_id(const text *history_id)
{
	const char *digits = VARDATA_ANY(history_id);
	int			len = VARSIZE_ANY_EXHDR(history_id);

	if (len < 1 || len > 20 || (len > 1 && digits[0] == '0') ||
		(len == 20 && memcmp(digits, MAX_HISTORY_ID, 20) > 0))
		return false;
	for (int i = 0; i < len; i++)
	{
		if (digits[i] < '0' || digits[i] > '9')
			return false;
	}
	return true;
}

void
syncstate_check_history_id(const char *name, const text *history_id)
{
	if (!syncstate_is_history_id(history_id))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a decimal number from 0 to %s", name,
						MAX_HISTORY_ID),
				 errdetail("Got \"%.*s\".",
						   pg_mbcliplen(VARDATA_ANY(history_id),
										VARSIZE_ANY_EXHDR(history_id), 100),
						   VARDATA_ANY(history_id))));
}
