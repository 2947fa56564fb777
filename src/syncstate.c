/*-------------------------------------------------------------------------
 *
 * syncstate.c
 *		Module magic, settings, and the one source of time
 *
 * src/syncstate.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "syncstate.h"

PG_MODULE_MAGIC;

/*
 * syncstate.clock: the time by which the extension decides, as text.  Empty
 * is the real clock.  An administrator sets it in tests and simulations, to
 * move time without waiting; never in production, where it would stop time.
 */
static char *clock_setting = NULL;

/* The same, parsed; NO_TIME is the real clock. */
static TimestampTz clock_time = NO_TIME;

static bool check_clock(char **newval, void **extra, GucSource source);
static void assign_clock(const char *newval, void *extra);

PG_FUNCTION_INFO_V1(syncstate_sync_clock);

void		_PG_init(void);

void
_PG_init(void)
{
	DefineCustomStringVariable("syncstate.clock",
							   "Sets the time by which syncstate decides, for tests and simulations.",
							   "Empty is the real clock.",
							   &clock_setting,
							   "",
							   PGC_SUSET,
							   GUC_NOT_IN_SAMPLE,
							   check_clock,
							   assign_clock,
							   NULL);
	MarkGUCPrefixReserved("syncstate");
}

/*
 * syncstate_sync_clock() -> timestamptz
 *
 * The time by which the extension decides: the real time, or syncstate.clock
 * where that is set.
 *
 * Errors: none.
 */
Datum
syncstate_sync_clock(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(syncstate_now());
}

/*
 * The current time, never the start of the transaction: a lease that was
 * counted from the start of a long transaction would be over when it begins.
 */
TimestampTz
syncstate_now(void)
{
	return syncstate_clock_is_set() ? clock_time : GetCurrentTimestamp();
}

/* Whether somebody moves time by hand. */
bool
syncstate_clock_is_set(void)
{
	return clock_time != NO_TIME;
}

/*
 * Parses the setting.  Settings are also read where there is no transaction,
 * so this may not call timestamptz_in(); compare check_recovery_target_time().
 */
static bool
check_clock(char **newval, void **extra, GucSource source)
{
	TimestampTz *parsed;
	TimestampTz time = NO_TIME;

	if (**newval != '\0')
	{
		char		workbuf[MAXDATELEN + MAXDATEFIELDS];
		char	   *field[MAXDATEFIELDS];
		int			ftype[MAXDATEFIELDS];
		int			nf;
		int			dtype;
		int			tz;
		fsec_t		fsec;
		struct pg_tm tt;
#if PG_VERSION_NUM >= 160000
		DateTimeErrorExtra dtextra;
#define DecodeDateTime(f, ft, n, d, t, fs, z) \
		(DecodeDateTime)(f, ft, n, d, t, fs, z, &dtextra)
#endif

		if (ParseDateTime(*newval, workbuf, sizeof(workbuf),
						  field, ftype, MAXDATEFIELDS, &nf) != 0 ||
			DecodeDateTime(field, ftype, nf, &dtype, &tt, &fsec, &tz) != 0 ||
			dtype != DTK_DATE ||
			tm2timestamp(&tt, fsec, &tz, &time) != 0 ||
			!IS_LEGAL_TIME(time - MAX_DURATION) ||
			!IS_LEGAL_TIME(time + 2 * MAX_DURATION))
		{
			/* what is counted from it must be a legal time too */
			GUC_check_errdetail("\"%s\" is not a time of the years 101 to 9799.",
								*newval);
			return false;
		}
	}

#if PG_VERSION_NUM >= 160000
	parsed = guc_malloc(ERROR, sizeof(TimestampTz));
#else
	parsed = malloc(sizeof(TimestampTz));
	if (parsed == NULL)
		return false;
#endif
	*parsed = time;
	*extra = parsed;
	return true;
}

static void
assign_clock(const char *newval, void *extra)
{
	clock_time = *(TimestampTz *) extra;
}
