/* check.h: limits of values, and the checks that name the value in their error */
#ifndef SYNCSTATE_CHECK_H
#define SYNCSTATE_CHECK_H

#include "datatype/timestamp.h"
#include "utils/jsonb.h"

#define MAX_LABEL_BYTES			58
#define MAX_ACCOUNT_BYTES		255
#define MAX_RESOURCE_BYTES		1024
#define MAX_TOKEN_BYTES			65536
#define MAX_ERROR_BYTES			8192
#define MAX_BATCH_ROWS			10000
#define MIN_DURATION			USECS_PER_SEC
#define MAX_DURATION			(INT64CONST(36500) * USECS_PER_DAY)
#define MAX_LEASE_TIME			USECS_PER_DAY
#define MAX_HISTORY_ID			"18446744073709551615"
#define MAX_RETRY_AFTER			(30 * USECS_PER_DAY)
#define MAX_RELEASE_DELAY		USECS_PER_DAY
#define MAX_RATE_PER_MINUTE		1000000
#define MAX_AMOUNT				1e12

/*
 * Times of the years 1 to 9999: sums of them and our durations are timestamps
 * that every client and every dump can read.
 */
#define MIN_TIME				(-INT64CONST(63082281600) * USECS_PER_SEC)
#define MAX_TIME				(INT64CONST(252455616000) * USECS_PER_SEC)
#define IS_LEGAL_TIME(t)		((t) >= MIN_TIME && (t) < MAX_TIME)

/*
 * An UPDATE may write a fencing number up to what JSON clients can read.  An
 * INSERT may be part of a restore, so it may write whatever counting on from
 * there reaches.  Neither comes near an overflow by counting.
 */
#define MAX_UPDATED_LEASE		(INT64CONST(1) << 53)
#define MAX_INSERTED_LEASE		(INT64CONST(1) << 62)

/*
 * "No time" in a TimestampTz, "no number" in a count or an amount.  The table's
 * CHECK keeps infinite times and negative numbers out, so none of these can be
 * mistaken for a value.
 */
#define NO_TIME					DT_NOBEGIN
#define NO_COUNT				(-1)
#define NO_AMOUNT				(-1.0)

/*
 * What a JSON value is read as, which says what it may be: see check.c.  Every
 * function that takes JSON says it of each of its keys.
 */
typedef enum JsonUse
{
	JSON_TEXT,
	JSON_TIME,
	JSON_INTERVAL,
	JSON_NUMBER,
	NUM_JSON_USES,
} JsonUse;

typedef struct JsonKey
{
	const char *name;
	JsonUse		use;
} JsonKey;

/* These raise 22023, with the name, the limits and the value. */
extern void syncstate_check_size(const char *name, Size bytes, Size max_bytes);
extern void syncstate_check_text_size(const char *name, const text *value,
									  Size max_bytes);
extern void syncstate_check_count(const char *name, int64 count);
extern void syncstate_check_amount(const char *name, double amount);
extern void syncstate_check_time(const char *name, TimestampTz time);
extern int64 syncstate_check_duration(const char *name,
									  const Interval *interval,
									  int64 min, int64 max);
extern int	syncstate_check_word(const char *name, const char *word,
								 const char *const *words, int nwords);
extern void syncstate_check_json(const JsonKey *key, JsonbValue *value);
extern void syncstate_check_object(const char *name, JsonbContainer *object,
								   const JsonKey *keys, int nkeys);
extern void syncstate_check_history_id(const char *name,
									   const text *history_id);

extern const char *syncstate_json_kind(Jsonb *json);
extern Size syncstate_text_bytes(const text *value);
extern bool syncstate_is_duration(const Interval *interval, int64 min, int64 max);
extern bool syncstate_is_history_id(const text *history_id);
extern text *syncstate_tidy_history_id(text *history_id);
extern text *syncstate_cut_message(text *message);
extern int64 syncstate_clamped_wait(const Interval *retry_after);

/*
 * An interval in microseconds, at most MAX_DURATION either way.  Months, which
 * only retry_after may have, count 30 days, as in comparisons of intervals.
 */
static inline int64
syncstate_interval_usecs(const Interval *interval)
{
	double		usecs = (double) interval->time +
		((double) interval->day + 30.0 * interval->month) * USECS_PER_DAY;

	if (usecs >= (double) MAX_DURATION)
		return MAX_DURATION;
	if (usecs <= -(double) MAX_DURATION)
		return -MAX_DURATION;
	return (int64) usecs;		/* exact: below 2^53 */
}

#endif
