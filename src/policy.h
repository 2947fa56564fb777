/* policy.h: the effective settings of sources */
#ifndef SYNCSTATE_POLICY_H
#define SYNCSTATE_POLICY_H

#include "access/htup.h"
#include "columns.h"
#include "datatype/timestamp.h"

/* What token_ttl is counted from. */
typedef enum TokenTtlFrom
{
	TTL_FROM_TOKEN,				/* token_issued_at */
	TTL_FROM_FULL,				/* last_full_sync_at */
	NUM_TTL_FROM,
} TokenTtlFrom;

/* Which runs sync_run keeps. */
typedef enum KeepRuns
{
	KEEP_RUNS_NONE,
	KEEP_RUNS_FAILURES,			/* all but completed and released ones */
	KEEP_RUNS_ALL,
	NUM_KEEP_RUNS,
} KeepRuns;

/* The C types of the kinds of settings; durations are in microseconds. */
typedef int64 SettingDURATION;
typedef int64 SettingDURATION_OR_OFF;
typedef int32 SettingCOUNT;
typedef int32 SettingCOUNT_OR_OFF;
typedef double SettingFRACTION;
typedef TokenTtlFrom SettingTTL_FROM;
typedef KeepRuns SettingKEEP_RUNS;
typedef TimestampTz SettingPAUSE;	/* NO_TIME: not paused */
typedef TimestampTz SettingTIME_OR_OFF; /* NO_TIME: off */
typedef NameData SettingLABEL;

/* The effective policy of a source. */
typedef struct SyncPolicy
{
	Oid			source;
	NameData	label;
	uint64		label_hash;		/* so that a user's sources differ in phase */

#define FIELD(name, kind, least, most, builtin) Setting##kind name;
	SYNC_POLICY_SETTINGS(FIELD)
#undef FIELD

	/* learned by rebalance_syncs() */
	double		multiplier;		/* 0: never rebalanced */
	double		mean_rate;		/* changes per second of a row */
} SyncPolicy;

extern SyncPolicy syncstate_policy(Oid source);
extern SyncPolicy *syncstate_policies(int *npolicies);
extern uint32 syncstate_turn(uint32 *turn);
extern Oid *syncstate_sources_of_provider(const char *provider, int *nsources);
extern int	syncstate_source_rank(Oid source);
extern void syncstate_policy_check(HeapTupleHeader overrides);
extern Datum syncstate_policy_row(const SyncPolicy *policy);
extern void syncstate_wake_workers(const SyncPolicy *policy);

#endif
