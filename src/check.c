/*
 * check.c: checks of values
 *
 * Every check raises 22023, and names the value, its limits and what was
 * given.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "check.h"

#define CUT_MARK	" [cut]"

#define INTERVAL_HINT \
	"Send an interval as text, such as \"15 minutes\".  Clients such as node-postgres read an interval as an object."

/*
 * What a JSON value must be: a string, or perhaps a number.  Numbers come as
 * strings, too, from clients whose own are not exact beyond 2^53.
 */
static const struct
{
	bool		number;
	const char *wanted;
	const char *hint;
}			json_uses[NUM_JSON_USES] = {
	[JSON_TEXT] = {false, "a JSON string", NULL},
	[JSON_TIME] = {false, "a time in a JSON string",
	"Send a time as text, such as \"2030-01-31T12:00:00Z\"."},
	[JSON_INTERVAL] = {true, "an interval in a JSON string, or a JSON number of seconds",
	INTERVAL_HINT},
	[JSON_NUMBER] = {true, "a JSON number, or a number in a JSON string", NULL},
};

void
syncstate_check_size(const char *name, Size bytes, Size max_bytes)
{
	if (bytes > max_bytes)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be at most %zu bytes long", name, max_bytes),
				 errdetail("Got %zu bytes.", bytes)));
}

/* Checks the size of a text before it is brought into memory. */
void
syncstate_check_text_size(const char *name, const text *value, Size max_bytes)
{
	syncstate_check_size(name, syncstate_text_bytes(value), max_bytes);
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
 * Checks that a JSON value is of a kind that its key can be read from.  Null is
 * for the caller to judge.
 *
 * What the server's own conversion would make of the other kinds is a guess:
 * the text of an object is an interval, too, of the first number in it.
 */
void
syncstate_check_json(const JsonKey *key, JsonbValue *value)
{
	if (value->type == jbvNull || value->type == jbvString ||
		(value->type == jbvNumeric && json_uses[key->use].number))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s must be %s", key->name, json_uses[key->use].wanted),
			 errdetail("Got a JSON %s.", JsonbTypeName(value)),
			 json_uses[key->use].hint == NULL ? 0 :
			 errhint("%s", json_uses[key->use].hint)));
}

/* Raises the error of a key that an object cannot have. */
static void
unknown_key(const char *name, const JsonbValue *key, const JsonKey *keys,
			int nkeys)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < nkeys; i++)
		appendStringInfo(&list, "%s%s", i > 0 ? ", " : "", keys[i].name);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s has no key \"%.*s\"", name,
					pg_mbcliplen(key->val.string.val, key->val.string.len, 100),
					key->val.string.val),
			 errhint("Keys are %s.", list.data)));
}

/*
 * Checks that every key of a JSON object is one of a few, with a value of a kind
 * that it can have.
 */
void
syncstate_check_object(const char *name, JsonbContainer *object,
					   const JsonKey *keys, int nkeys)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbValue	value;
	JsonbIteratorToken token;
	int			key = nkeys;

	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			for (key = 0; key < nkeys; key++)
			{
				if (strlen(keys[key].name) == (size_t) value.val.string.len &&
					memcmp(keys[key].name, value.val.string.val,
						   value.val.string.len) == 0)
					break;
			}
			if (key == nkeys)
				unknown_key(name, &value, keys, nkeys);
		}
		else if (token == WJB_VALUE)
			syncstate_check_json(&keys[key], &value);
	}
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

/* The kind of a JSON value, as SQL's jsonb_typeof() names it. */
const char *
syncstate_json_kind(Jsonb *json)
{
	JsonbValue	value;

	JsonbToJsonbValue(json, &value);
	return JsonbTypeName(&value);
}

/* Whether an interval is within limits, and of a length that has no months. */
bool
syncstate_is_duration(const Interval *interval, int64 min, int64 max)
{
	double		usecs = (double) interval->time +
		(double) interval->day * USECS_PER_DAY;

	return interval->month == 0 && usecs >= min && usecs <= max;
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

/* The size of a text, which may be stored out of line; 0 of NULL. */
Size
syncstate_text_bytes(const text *value)
{
	return value == NULL ? 0 :
		toast_raw_datum_size(PointerGetDatum(value)) - VARHDRSZ;
}

/* A message of at most MAX_ERROR_BYTES, marked where it was cut. */
text *
syncstate_cut_message(text *message)
{
	StringInfoData cut;
	int			len;

	if (VARSIZE_ANY_EXHDR(message) <= MAX_ERROR_BYTES)
		return message;
	len = pg_mbcliplen(VARDATA_ANY(message), VARSIZE_ANY_EXHDR(message),
					   MAX_ERROR_BYTES - strlen(CUT_MARK));
	initStringInfo(&cut);
	appendBinaryStringInfo(&cut, VARDATA_ANY(message), len);
	appendStringInfoString(&cut, CUT_MARK);
	return cstring_to_text_with_len(cut.data, cut.len);
}

/* The wait that a provider asked for, from 1 second to 30 days. */
int64
syncstate_clamped_wait(const Interval *retry_after)
{
	return Min(Max(syncstate_interval_usecs(retry_after), MIN_DURATION),
			   MAX_RETRY_AFTER);
}
