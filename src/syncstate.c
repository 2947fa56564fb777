/* syncstate.c: module magic, settings, and the one source of time */
#include "postgres.h"

#include "fmgr.h"
#include "utils/timestamp.h"

#include "check.h"
#include "compat.h"
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

PG_FUNCTION_INFO_V1(syncstate_sync_clock);

void		_PG_init(void);

/*
 * Parses the setting; false if it is not a time from which everything that is
 * counted is legal too.  Settings are also read where there is no transaction,
 * so this may not call timestamptz_in(); compare check_recovery_target_time().
 */
static bool
parse_clock(const char *setting, TimestampTz *time)
{
	char		workbuf[MAXDATELEN + MAXDATEFIELDS];
	char	   *field[MAXDATEFIELDS];
	int			ftype[MAXDATEFIELDS];
	int			nf;
	int			dtype;
	int			tz;
	fsec_t		fsec;
	struct pg_tm tt;

	*time = NO_TIME;
	if (*setting == '\0')
		return true;
	return ParseDateTime(setting, workbuf, sizeof(workbuf),
						 field, ftype, MAXDATEFIELDS, &nf) == 0 &&
		syncstate_decode_date_time(field, ftype, nf, &dtype, &tt, &fsec,
								   &tz) == 0 &&
		dtype == DTK_DATE &&
		tm2timestamp(&tt, fsec, &tz, time) == 0 &&
		IS_LEGAL_TIME(*time - MAX_DURATION) &&
		IS_LEGAL_TIME(*time + 2 * MAX_DURATION);
}

/* Keeps what was parsed: a rollback brings the same time back. */
static bool
check_clock(char **newval, void **extra, GucSource source)
{
	TimestampTz time;

	if (!parse_clock(*newval, &time))
	{
		GUC_check_errdetail("\"%s\" is not a time of the years 101 to 9799.",
							*newval);
		return false;
	}
	*extra = syncstate_guc_malloc(sizeof(TimestampTz));
	if (*extra == NULL)
		return false;
	*(TimestampTz *) *extra = time;
	return true;
}

static void
assign_clock(const char *newval, void *extra)
{
	clock_time = *(TimestampTz *) extra;
}

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

/* Whether somebody moves time by hand. */
bool
syncstate_clock_is_set(void)
{
	return clock_time != NO_TIME;
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

/*
 * The number that the leases of a new row begin with, as by the tables' DEFAULT:
 * microseconds since 1970, by the real clock.
 */
int64
syncstate_first_lease(void)
{
	return GetCurrentTimestamp() +
		(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
}

/* syncstate_sync_clock() -> timestamptz: see doc/syncstate.md. */
Datum
syncstate_sync_clock(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(syncstate_now());
}
