/* spread.h: reports that hold for all rows of an account */
#ifndef SYNCSTATE_SPREAD_H
#define SYNCSTATE_SPREAD_H

#include "access.h"
#include "transition.h"

/* A report of a row of an account, and what became of it. */
typedef struct AccountReport
{
	Transition	transition;
	const Report *report;
	HeapTuple	result;			/* the row; NULL: was not applied */
	bool		is_told;		/* that it parked its account */
} AccountReport;

/* Whether a report is applied to its row, which is locked; may raise an error. */
typedef bool (*ReportCheck) (Transition transition, const SyncState *row,
							 const Report *report, TimestampTz now);

extern bool syncstate_spreads(Transition transition, const Report *report);
extern void syncstate_lock_account(RowAccess *rows, const SyncKey *key);
extern void syncstate_revoke_account(RowAccess *rows, const SyncKey *key,
									 text *detail, TimestampTz now);
extern TimestampTz syncstate_spread(RowAccess *rows, AccountReport *reports,
									int nreports, ReportCheck applies);

#endif
