/* channel.h: push channels in memory, and what becomes of them */
#ifndef SYNCSTATE_CHANNEL_H
#define SYNCSTATE_CHANNEL_H

#include "access/htup.h"
#include "access/tupdesc.h"
#include "policy.h"
#include "state.h"

/* A provider that refused is asked again after this. */
#define ASK_AGAIN_AFTER		(30 * USECS_PER_DAY)

/* The state of a channel says what is to be done about it. */
typedef enum ChannelState
{
	CHANNEL_OPENING,
	CHANNEL_ACTIVE,
	CHANNEL_RETIRING,
	CHANNEL_UNSUPPORTED,
	NUM_CHANNEL_STATES,
} ChannelState;

/* Why a channel could not be opened, renewed or stopped. */
typedef enum ChannelFailure
{
	CHANNEL_FAILURE_TRANSIENT,
	CHANNEL_FAILURE_UNSUPPORTED,
	CHANNEL_FAILURE_AUTH,
	NUM_CHANNEL_FAILURES,
} ChannelFailure;

/* The C types of the kinds of columns that sync_state has not. */
typedef ChannelState SyncWORD;
typedef bytea *SyncBYTES;

/* A row of sync_channel; a null column is NULL, NO_TIME or NO_COUNT. */
typedef struct SyncChannel
{
	pg_uuid_t	id;
	SyncKey		key;
#define FIELD(name, kind) Sync##kind name;
	SYNC_CHANNEL_COLUMNS(FIELD)
#undef FIELD
} SyncChannel;

extern const char *const syncstate_channel_actions[NUM_CHANNEL_STATES];
extern const char *const syncstate_channel_failures[NUM_CHANNEL_FAILURES];

extern void syncstate_channel_from_tuple(HeapTuple tuple, TupleDesc tupdesc,
										 SyncChannel *channel);
extern void syncstate_channel_to_datums(const SyncChannel *channel,
										Datum *values, bool *nulls);

extern void syncstate_channel_claim(SyncChannel *channel, const SyncPolicy *policy,
									int64 lease_time, TimestampTz now);
extern void syncstate_channel_open(SyncChannel *channel, const SyncChannel *opened,
								   const SyncPolicy *policy, TimestampTz now);
extern void syncstate_channel_retire(SyncChannel *channel, TimestampTz now);
extern void syncstate_channel_refuse(SyncChannel *channel, text *message,
									 TimestampTz now);
extern void syncstate_channel_fail(SyncChannel *channel, ChannelFailure kind,
								   text *message, const SyncPolicy *policy,
								   TimestampTz now);
extern bool syncstate_channel_hear(SyncChannel *channel, int64 message_number,
								   TimestampTz now);
extern bool syncstate_channel_is_repeat(const SyncChannel *channel,
										int64 message_number);
extern TimestampTz syncstate_channel_trusted(const SyncChannel *channel,
											 const SyncPolicy *policy);

#endif
