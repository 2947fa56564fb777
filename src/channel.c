/*
 * channel.c: push channels: reading, writing, and what becomes of them
 *
 * A channel is changed in memory: no SQL is run here, and the time is an
 * argument.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "common/pg_prng.h"
#include "utils/builtins.h"

#include "channel.h"
#include "kinds.h"
#include "schedule.h"

/* The arrival of pushes is written at most this often. */
#define HEARD_EVERY			(10 * USECS_PER_SEC)

static const char *const state_words[NUM_CHANNEL_STATES] = {
	[CHANNEL_OPENING] = "opening",
	[CHANNEL_ACTIVE] = "active",
	[CHANNEL_RETIRING] = "retiring",
	[CHANNEL_UNSUPPORTED] = "unsupported",
};

/* What a claim hands out a channel for. */
const char *const syncstate_channel_actions[NUM_CHANNEL_STATES] = {
	[CHANNEL_OPENING] = "open",
	[CHANNEL_ACTIVE] = "renew",
	[CHANNEL_RETIRING] = "stop",
	[CHANNEL_UNSUPPORTED] = "open",
};

const char *const syncstate_channel_failures[NUM_CHANNEL_FAILURES] = {
	[CHANNEL_FAILURE_TRANSIENT] = "transient",
	[CHANNEL_FAILURE_UNSUPPORTED] = "unsupported",
	[CHANNEL_FAILURE_AUTH] = "auth",
};

/* The state that a word of the table stands for. */
static ChannelState
state_of(Datum word)
{
	return syncstate_check_word("state", TextDatumGetCString(word), state_words,
								NUM_CHANNEL_STATES);
}

#define READ_WORD(name)		state_of(value)
#define NULL_WORD(field)	false
#define DATUM_WORD(field)	CStringGetTextDatum(state_words[field])

/* Reads a channel; what it points to is the tuple's, or in the current context. */
void
syncstate_channel_from_tuple(HeapTuple tuple, TupleDesc tupdesc,
							 SyncChannel *channel)
{
	Datum	   *values = palloc(tupdesc->natts * sizeof(Datum));
	bool	   *nulls = palloc(tupdesc->natts * sizeof(bool));

	heap_deform_tuple(tuple, tupdesc, values, nulls);
	channel->id = *DatumGetUUIDP(values[Anum_sync_channel_id - 1]);

#define READ(row, name, kind) \
	do { \
		Datum		value = values[Anum_sync_channel_##name - 1]; \
		bool		isnull pg_attribute_unused() = nulls[Anum_sync_channel_##name - 1]; \
		(row)->name = READ_##kind(name); \
	} while (0);
#define READ_KEY_COLUMN(name, kind, writer) READ(&channel->key, name, kind)
#define READ_COLUMN(name, kind) READ(channel, name, kind)

	SYNC_KEY_COLUMNS(READ_KEY_COLUMN)
	SYNC_CHANNEL_COLUMNS(READ_COLUMN)
}

/* The values of a channel's columns. */
void
syncstate_channel_to_datums(const SyncChannel *channel, Datum *values, bool *nulls)
{
	values[Anum_sync_channel_id - 1] = UUIDPGetDatum(&channel->id);
	nulls[Anum_sync_channel_id - 1] = false;

#define WRITE(row, name, kind) \
	nulls[Anum_sync_channel_##name - 1] = NULL_##kind((row)->name); \
	values[Anum_sync_channel_##name - 1] = \
		NULL_##kind((row)->name) ? (Datum) 0 : DATUM_##kind((row)->name);
#define WRITE_KEY_COLUMN(name, kind, writer) WRITE(&channel->key, name, kind)
#define WRITE_COLUMN(name, kind) WRITE(channel, name, kind)

	SYNC_KEY_COLUMNS(WRITE_KEY_COLUMN)
	SYNC_CHANNEL_COLUMNS(WRITE_COLUMN)
}

static int64
backoff(const SyncPolicy *policy, int32 failures)
{
	return syncstate_backoff(policy, failures,
							 pg_prng_double(&pg_global_prng_state));
}

/* Nobody has the channel any more. */
static void
end_lease(SyncChannel *channel)
{
	channel->lease_expires_at = NO_TIME;
}

static void
count_failure(SyncChannel *channel)
{
	if (channel->failures < PG_INT32_MAX)
		channel->failures++;
}

/*
 * Hands a channel out.  A lease that ran out counts as a failure.  As with syncs,
 * the first one is handed out again when its lease ends, and a later one by
 * backoff from there.
 */
void
syncstate_channel_claim(SyncChannel *channel, const SyncPolicy *policy,
						int64 lease_time, TimestampTz now)
{
	if (channel->lease_expires_at != NO_TIME)
		count_failure(channel);
	if (channel->state == CHANNEL_UNSUPPORTED)
		channel->state = CHANNEL_OPENING;
	channel->lease++;
	channel->lease_expires_at = now +
		(lease_time != 0 ? lease_time : policy->lease_time);
	channel->renew_at = channel->lease_expires_at;
	if (channel->failures > 0)
		channel->renew_at += backoff(policy, Min(channel->failures, PG_INT32_MAX - 1) + 1);
}

/*
 * When a channel is renewed: between once and half of push_renew_before before
 * its end, at the row's own part, so that channels opened together do not end
 * together.  One that lives for less than that is renewed after half of its life.
 */
static TimestampTz
renew_time(const SyncChannel *channel, const SyncPolicy *policy)
{
	TimestampTz end = channel->expires_at;
	double		part = 1.0 - 0.5 * syncstate_row_part(policy, &channel->key);

	if (end == NO_TIME)
		return DT_NOEND;
	return Max(end - (int64) (policy->push_renew_before * part),
			   channel->opened_at + (end - channel->opened_at) / 2);
}

/*
 * A channel is open, under what the caller has set in "opened".  The same channel
 * may be prolonged: then what was heard of it stays.
 */
void
syncstate_channel_open(SyncChannel *channel, const SyncChannel *opened,
					   const SyncPolicy *policy, TimestampTz now)
{
	if (!syncstate_same_text(channel->channel_id, opened->channel_id))
	{
		channel->last_push_at = NO_TIME;
		channel->message_number = NO_COUNT;
	}
	channel->state = CHANNEL_ACTIVE;
	channel->channel_id = opened->channel_id;
	channel->token_hash = opened->token_hash;
	channel->provider_ref = opened->provider_ref;
	channel->expires_at = opened->expires_at;
	channel->opened_at = now;
	channel->failures = 0;
	channel->error_message = NULL;
	channel->renew_at = renew_time(channel, policy);
	end_lease(channel);
}

/* An open channel is to be stopped, at once. */
void
syncstate_channel_retire(SyncChannel *channel, TimestampTz now)
{
	channel->state = CHANNEL_RETIRING;
	channel->failures = 0;
	channel->error_message = NULL;
	channel->renew_at = now;
	end_lease(channel);
}

/* The provider gives the row no channel. */
void
syncstate_channel_refuse(SyncChannel *channel, text *message, TimestampTz now)
{
	channel->state = CHANNEL_UNSUPPORTED;
	channel->failures = 0;
	channel->error_message = message;
	channel->renew_at = now + ASK_AGAIN_AFTER;
	end_lease(channel);
}

/*
 * What was to be done failed.  A channel that cannot be stopped is kept until it
 * ends.
 */
void
syncstate_channel_fail(SyncChannel *channel, ChannelFailure kind, text *message,
					   const SyncPolicy *policy, TimestampTz now)
{
	count_failure(channel);
	channel->error_message = message;
	if (kind == CHANNEL_FAILURE_TRANSIENT)
		channel->renew_at = now + backoff(policy, channel->failures);
	else if (kind == CHANNEL_FAILURE_AUTH)
		channel->renew_at = now + policy->retry_cap;
	else
		channel->renew_at = channel->expires_at != NO_TIME ?
			channel->expires_at : DT_NOEND;
	end_lease(channel);
}

/* Whether a message is one that was taken before; numbers of a channel increase. */
bool
syncstate_channel_is_repeat(const SyncChannel *channel, int64 message_number)
{
	return message_number != NO_COUNT &&
		channel->message_number != NO_COUNT &&
		message_number <= channel->message_number;
}

/*
 * A push came.  False if it came so soon after the last one that this need not
 * be written; a time ahead was written by a clock that was wrong.
 */
bool
syncstate_channel_hear(SyncChannel *channel, int64 message_number,
					   TimestampTz now)
{
	if (channel->last_push_at != NO_TIME && channel->last_push_at <= now &&
		now - channel->last_push_at < HEARD_EVERY)
		return false;
	channel->last_push_at = now;
	if (message_number != NO_COUNT)
		channel->message_number = message_number;
	return true;
}

/* Until when a channel makes frequent polls unnecessary. */
TimestampTz
syncstate_channel_trusted(const SyncChannel *channel, const SyncPolicy *policy)
{
	TimestampTz until = Max(channel->opened_at, channel->last_push_at) +
		policy->push_silence;

	return channel->expires_at == NO_TIME ? until : Min(until, channel->expires_at);
}
