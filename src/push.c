/*
 * push.c: the SQL functions of push channels
 *
 * What is to be done about a channel follows from its state, and whoever claims
 * it has it under a lease, as with rows.  There is no trigger that makes channels
 * or ends them: each claim first makes them match the rows, so that it does not
 * matter how a row came or went.
 *
 * Whoever locks both a row and its channels locks the row first.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_enum.h"
#include "common/sha2.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "access.h"
#include "args.h"
#include "channel.h"
#include "request.h"
#include "spread.h"
#include "store.h"
#include "syncstate.h"
#include "transition.h"

#define MAX_CHANNEL_ID_BYTES	1024
#define MAX_PROVIDER_REF_BYTES	8192

/* Channels that are made to match at a time. */
#define MAX_MATCHED		10000

/*
 * To look whether channels match the rows reads all of both.  Where sync_state has
 * more pages than this, the session looks again only after so many times as long
 * as that took.
 */
#define FEW_PAGES		1024
#define REST_AFTER_MATCH	100

/* When this session looks next whether the channels of a source match its rows. */
typedef struct Match
{
	Oid			source;
	TimestampTz rests_until;	/* by the real clock */
} Match;

static Match *matches = NULL;
static int	nmatches = 0;

PG_FUNCTION_INFO_V1(syncstate_claim_push_channels);
PG_FUNCTION_INFO_V1(syncstate_mark_channel_opened);
PG_FUNCTION_INFO_V1(syncstate_mark_channel_failed);
PG_FUNCTION_INFO_V1(syncstate_mark_channel_stopped);
PG_FUNCTION_INFO_V1(syncstate_receive_push);

static Match *
match_of(Oid source)
{
	for (int i = 0; i < nmatches; i++)
	{
		if (matches[i].source == source)
			return &matches[i];
	}
	matches = matches == NULL ?
		MemoryContextAlloc(TopMemoryContext, sizeof(Match)) :
		repalloc(matches, (nmatches + 1) * sizeof(Match));
	matches[nmatches] = (Match) {.source = source,.rests_until = NO_TIME};
	return &matches[nmatches++];
}

/*
 * Locks the channels of a source against being matched by others, until the end
 * of the transaction; false if somebody else is at it, whose result will do.
 */
static bool
lock_match(Oid source)
{
	LOCKTAG		tag;

	/* rebalance_syncs() has the same with the number 0 */
	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, EnumRelationId, source, 1);
	return LockAcquire(&tag, ExclusiveLock, false, true) !=
		LOCKACQUIRE_NOT_AVAIL;
}

static bool
has_few_rows(void)
{
	Relation	rel = syncstate_open_state(AccessShareLock);
	bool		has_few = RelationGetNumberOfBlocks(rel) <= FEW_PAGES;

	table_close(rel, NoLock);
	return has_few;
}

/*
 * Makes the channels of a source match its rows.  A transaction that keeps its
 * snapshot leaves that to others, since it does not see what they have done.
 */
static void
match_channels(const SyncPolicy *policy, TimestampTz now)
{
	TimestampTz began = GetCurrentTimestamp();
	TimestampTz wait_until = match_of(policy->source)->rests_until;
	bool		rests = began < wait_until && wait_until <= began + USECS_PER_DAY;
	int64		nwrong;

	if (IsolationUsesXactSnapshot() || (rests && !syncstate_clock_is_set()) ||
		!lock_match(policy->source))
		return;
	nwrong = syncstate_store_match_channels(policy, MAX_MATCHED, now);

	/* a channel that is over makes room for another */
	if (nwrong > 0 && nwrong < MAX_MATCHED)
		nwrong = syncstate_store_match_channels(policy, MAX_MATCHED, now);
	match_of(policy->source)->rests_until =
		nwrong == MAX_MATCHED || has_few_rows() ? NO_TIME :
		began + (GetCurrentTimestamp() - began) * REST_AFTER_MATCH;
}

/* Adds a channel that was handed out to the result. */
static void
put_claimed(ReturnSetInfo *rsinfo, const SyncChannel *channel)
{
	const char *action = syncstate_channel_actions[channel->state];
	Datum		values[] = {
		UUIDPGetDatum(&channel->key.user_id),
		PointerGetDatum(channel->key.account),
		ObjectIdGetDatum(channel->key.source),
		PointerGetDatum(channel->key.resource),
		CStringGetTextDatum(action),
		Int64GetDatum(channel->lease),
		TimestampTzGetDatum(channel->lease_expires_at),
		PointerGetDatum(channel->channel_id),
		PointerGetDatum(channel->provider_ref),
		TimestampTzGetDatum(channel->expires_at),
		Int32GetDatum(channel->failures),
	};
	bool		nulls[] = {
		false, false, false, false, false, false, false,
		channel->channel_id == NULL,
		channel->provider_ref == NULL,
		channel->expires_at == NO_TIME,
		false,
	};

	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * Hands out a channel that is locked.  Not one that has ended before it was
 * stopped, which is forgotten; nor one of a parked row, which waits until a match
 * finds that the row has returned; nor one of a limited account, unless it is to
 * be stopped.
 */
static bool
claim_channel(DueChannel *due, const SyncPolicy *policy, int64 lease_time,
			  TimestampTz now)
{
	SyncChannel *channel = &due->channel;

	/* where the source uses push no more, and the match rests */
	if (policy->push_renew_before == 0 && channel->state == CHANNEL_ACTIVE)
		syncstate_channel_retire(channel, now);
	else if (policy->push_renew_before == 0 && channel->state != CHANNEL_RETIRING)
	{
		(void) syncstate_store_drop_channel(channel);
		return false;
	}

	if (channel->state == CHANNEL_RETIRING)
	{
		if (channel->expires_at != NO_TIME && channel->expires_at <= now)
		{
			(void) syncstate_store_drop_channel(channel);
			return false;
		}
	}
	else if (due->row_is_parked || due->limited_until > now)
	{
		/* look again each day, since nothing tells that a limit was lifted */
		channel->renew_at = due->row_is_parked ? NO_TIME :
			Min(due->limited_until, now + USECS_PER_DAY);
		(void) syncstate_store_write_channel(channel);
		return false;
	}
	syncstate_channel_claim(channel, policy, lease_time, now);
	(void) syncstate_store_write_channel(channel);
	return true;
}

/*
 * Hands out at most so many channels of a source; returns how many.  Channels to
 * stop come first, whichever round found them: a mailbox has only one channel, and
 * a stop that came after its opening would end the new one.
 */
static int
claim_channels(ReturnSetInfo *rsinfo, const SyncPolicy *policy, int max_rows,
			   int64 lease_time, TimestampTz now)
{
	int			nclaimed = 0;
	int			ndue;
	List	   *others = NIL;
	ListCell   *cell;

	if (policy->push_renew_before == 0 &&
		!syncstate_store_has_channels(policy->source))
		return 0;
	match_channels(policy, now);
	do
	{
		int			wanted = max_rows - nclaimed;
		DueChannel *due = syncstate_store_due_channels(policy->source, wanted,
													   now, &ndue);

		for (int i = 0; i < ndue; i++)
		{
			SyncChannel *channel = &due[i].channel;

			if (!claim_channel(&due[i], policy, lease_time, now))
				continue;
			nclaimed++;
			if (channel->state == CHANNEL_RETIRING)
				put_claimed(rsinfo, channel);
			else
				others = lappend(others, channel);
		}
	} while (nclaimed < max_rows && ndue > 0);
	foreach(cell, others)
		put_claimed(rsinfo, lfirst(cell));
	return nclaimed;
}

/*
 * syncstate_claim_push_channels(source, max_rows, lease_time) -> setof record: see
 * doc/syncstate.md.
 */
Datum
syncstate_claim_push_channels(PG_FUNCTION_ARGS)
{
	static uint32 turn = 0;
	uint32		first;
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			source = PG_ARGISNULL(0) ? InvalidOid : PG_GETARG_OID(0);
	int32		max_rows = syncstate_arg_max_rows(fcinfo, 1, false);
	int64		lease_time = syncstate_arg_duration(fcinfo, 2, "lease_time",
													MIN_DURATION, MAX_LEASE_TIME);
	TimestampTz now = syncstate_now();
	int			nclaimed = 0;
	int			npolicies;
	SyncPolicy *policies;

	PreventCommandIfReadOnly("claim_push_channels()");
	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	policies = syncstate_policies(&npolicies);

	/* each source comes first in its turn, so that none waits for another */
	first = syncstate_turn(&turn);
	for (int i = 0; i < npolicies && nclaimed < max_rows; i++)
	{
		const SyncPolicy *policy = &policies[(first + i) % npolicies];

		if ((!OidIsValid(source) || policy->source == source) &&
			policy->paused_until <= now)
			nclaimed += claim_channels(rsinfo, policy, max_rows - nclaimed,
									   lease_time, now);
	}
	SPI_finish();
	return (Datum) 0;
}

static void
lease_is_lost(const SyncKey *key, int64 lease)
{
	ereport(ERROR,
			(errcode(ERRCODE_LEASE_LOST),
			 errmsg("lease on push channel is no longer held"),
			 errdetail("%s  The call gave lease %lld.",
					   syncstate_key_detail(key), (long long) lease),
			 errhint("Drop the work and claim again.")));
}

static bytea *
hash_token(text *token)
{
	return DatumGetByteaPP(DirectFunctionCall1(sha256_bytea,
											   PointerGetDatum(token)));
}

/* When a channel ends; NO_TIME: never. */
static TimestampTz
read_end(FunctionCallInfo fcinfo, int arg, TimestampTz now)
{
	TimestampTz expires_at = syncstate_arg_time(fcinfo, arg, "expires_at");

	if (expires_at != NO_TIME && expires_at <= now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("expires_at must be later than now"),
				 errdetail("Got %s.", timestamptz_to_str(expires_at)),
				 errhint("Google counts the expiration of a channel in milliseconds since 1970.")));
	return expires_at;
}

/*
 * Whether a channel belongs to a former row with the same key: the user has
 * disconnected and connected again since, perhaps with another grant.
 * PLAN_CHANNELS_MATCH has the same rule, for all rows at once.
 */
static bool
is_of_former_row(const SyncChannel *channel, const SyncState *row)
{
	int64		made = row->lease - row->syncs_started;

	return channel->lease >= LEASE_BY_CLOCK && channel->lease < made &&
		made <= syncstate_first_lease();
}

/*
 * Finds who has the id of a channel that was opened.  A channel of another row
 * that is to be stopped gives it up: the provider has passed it on.
 */
static bool
find_namesake(const SyncChannel *opened, SyncChannel *namesake)
{
	if (!syncstate_store_lock_channel(opened->channel_id, namesake))
		return false;
	if (syncstate_same_key(&namesake->key, &opened->key))
		return true;
	if (namesake->state != CHANNEL_RETIRING)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("channel_id is that of another row's channel"),
				 errdetail("%s", syncstate_key_detail(&opened->key)),
				 errhint("Report the channel with mark_channel_failed(), kind \"unsupported\": this row is polled.")));
	(void) syncstate_store_drop_channel(namesake);
	return false;
}

/*
 * Records the channel that the holder of a lease has opened: it takes the place
 * of what the lease was given for, which is stopped if it was open.
 */
static HeapTuple
replace_channel(SyncChannel *held, const SyncChannel *namesake,
				SyncChannel *opened, const SyncPolicy *policy, TimestampTz now)
{
	bool		is_prolonged = held->channel_id != NULL &&
		syncstate_same_text(held->channel_id, opened->channel_id);

	if (namesake != NULL && !is_prolonged)
		(void) syncstate_store_drop_channel(namesake);
	if (held->state == CHANNEL_OPENING || is_prolonged)
	{
		syncstate_channel_open(held, opened, policy, now);
		*opened = *held;
		return syncstate_store_write_channel(held);
	}
	syncstate_channel_retire(held, now);
	(void) syncstate_store_write_channel(held);
	syncstate_channel_open(opened, opened, policy, now);
	return syncstate_store_make_channel(opened);
}

/* Lets a row be polled rarely until a time; NO_TIME: as often as ever. */
static void
trust_push(RowAccess *rows, SyncState *row, TimestampTz until, bool begins,
		   const SyncPolicy *policy, TimestampTz now)
{
	Report		report = {.push_until = until,.push_begins = begins};

	syncstate_apply(TRANSITION_TRUST_PUSH, row, &report, policy, now);
	(void) syncstate_rows_write(rows, row);
}

/*
 * syncstate_mark_channel_opened(...) -> sync_channel: see doc/syncstate.md.
 *
 * A worker that has lost the lease has opened a channel all the same.  It is
 * recorded as one to be stopped: after an error, nobody would know of it.
 */
Datum
syncstate_mark_channel_opened(PG_FUNCTION_ARGS)
{
	SyncKey		key = syncstate_arg_key(fcinfo, 0, 1, 7, 8);
	int64		lease = syncstate_arg_lease(fcinfo, 2);
	SyncChannel opened = {
		.key = key,
		.channel_id = syncstate_arg_filled_text(fcinfo, 3, "channel_id",
												MAX_CHANNEL_ID_BYTES),
		.expires_at = read_end(fcinfo, 4, syncstate_now()),
		.token_hash = hash_token(syncstate_arg_filled_text(fcinfo, 5, "token",
														   MAX_TOKEN_BYTES)),
		.provider_ref = syncstate_arg_text(fcinfo, 6, "provider_ref",
										   MAX_PROVIDER_REF_BYTES),
		.lease = syncstate_first_lease(),
		.lease_expires_at = NO_TIME,
		.last_push_at = NO_TIME,
		.message_number = NO_COUNT,
	};
	SyncPolicy	policy = syncstate_policy(key.source);
	RowAccess	rows;
	SyncState	row;
	SyncChannel held;
	SyncChannel namesake;
	bool		has_lease;
	bool		has_namesake;
	TimestampTz now;
	HeapTuple	result;

	SPI_connect();
	syncstate_rows_open(&rows);
	syncstate_rows_look(&rows);
	has_lease = syncstate_rows_lock(&rows, &key, &row) &&
		!syncstate_is_parked_for(&row, PARKED_GONE) &&
		policy.push_renew_before != 0 &&
		syncstate_store_lock_leased(&key, lease, &held) &&
		held.state != CHANNEL_RETIRING && !is_of_former_row(&held, &row);
	has_namesake = find_namesake(&opened, &namesake);
	now = syncstate_now();		/* after the waits for the locks */
	if (has_lease)
	{
		bool		begins = held.state == CHANNEL_OPENING ||
			(held.expires_at != NO_TIME && held.expires_at <= now);

		result = replace_channel(&held, has_namesake ? &namesake : NULL, &opened,
								 &policy, now);
		trust_push(&rows, &row, syncstate_channel_trusted(&opened, &policy),
				   begins, &policy, now);
	}
	else if (has_namesake)
		result = syncstate_store_write_channel(&namesake);
	else
	{
		syncstate_channel_open(&opened, &opened, &policy, now);
		syncstate_channel_retire(&opened, now);
		result = syncstate_store_make_channel(&opened);
	}
	syncstate_rows_close(&rows);
	SPI_finish();
	return HeapTupleGetDatum(result);
}

/*
 * The provider refuses a channel.  One that is open is stopped, and the row is
 * polled as often as ever.
 */
static HeapTuple
refuse_channel(RowAccess *rows, SyncChannel *channel, text *message,
			   const SyncPolicy *policy, TimestampTz now)
{
	SyncChannel refused = {
		.key = channel->key,
		.expires_at = NO_TIME,
		.lease = syncstate_first_lease(),
		.opened_at = NO_TIME,
		.last_push_at = NO_TIME,
		.message_number = NO_COUNT,
	};
	SyncState	row;

	if (syncstate_rows_lock(rows, &channel->key, &row) &&
		row.push_until != NO_TIME)
		trust_push(rows, &row, NO_TIME, false, policy, now);
	if (channel->state == CHANNEL_OPENING)
	{
		syncstate_channel_refuse(channel, message, now);
		return syncstate_store_write_channel(channel);
	}
	syncstate_channel_retire(channel, now);
	(void) syncstate_store_write_channel(channel);
	syncstate_channel_refuse(&refused, message, now);
	return syncstate_store_make_channel(&refused);
}

/* syncstate_mark_channel_failed(...) -> sync_channel: see doc/syncstate.md. */
Datum
syncstate_mark_channel_failed(PG_FUNCTION_ARGS)
{
	SyncKey		key = syncstate_arg_key(fcinfo, 0, 1, 5, 6);
	int64		lease = syncstate_arg_lease(fcinfo, 2);
	text	   *message = syncstate_arg_message(fcinfo, 3, "error_message");
	ChannelFailure kind = syncstate_arg_word(fcinfo, 4, "kind",
											 syncstate_channel_failures,
											 NUM_CHANNEL_FAILURES);
	SyncPolicy	policy = syncstate_policy(key.source);
	RowAccess	rows;
	SyncState	row;
	SyncChannel channel;
	bool		has_row;
	TimestampTz now;
	HeapTuple	result;

	SPI_connect();
	syncstate_rows_open(&rows);
	syncstate_rows_look(&rows);
	if (kind == CHANNEL_FAILURE_AUTH)
		syncstate_lock_account(&rows, &key);
	has_row = syncstate_rows_lock(&rows, &key, &row);
	if (!syncstate_store_lock_leased(&key, lease, &channel) ||
		(channel.state != CHANNEL_RETIRING && has_row &&
		 is_of_former_row(&channel, &row)))
		lease_is_lost(&key, lease);
	now = syncstate_now();
	if (kind == CHANNEL_FAILURE_UNSUPPORTED && channel.state != CHANNEL_RETIRING)
		result = refuse_channel(&rows, &channel, message, &policy, now);
	else
	{
		syncstate_channel_fail(&channel, kind, message, &policy, now);
		if (kind == CHANNEL_FAILURE_AUTH && channel.state != CHANNEL_RETIRING &&
			channel.failures >= policy.auth_failures)
		{
			syncstate_revoke_account(&rows, &key, message, now);
			channel.renew_at = NO_TIME; /* until the row returns */
			channel.failures = 0;	/* counting begins anew then */
		}
		result = syncstate_store_write_channel(&channel);
	}
	syncstate_rows_close(&rows);
	SPI_finish();
	return HeapTupleGetDatum(result);
}

/*
 * syncstate_mark_channel_stopped(...) -> sync_channel: see doc/syncstate.md.
 *
 * A row that has no other channel is polled at its ordinary interval from now on.
 */
Datum
syncstate_mark_channel_stopped(PG_FUNCTION_ARGS)
{
	SyncKey		key = syncstate_arg_key(fcinfo, 0, 1, 3, 4);
	int64		lease = syncstate_arg_lease(fcinfo, 2);
	SyncPolicy	policy = syncstate_policy(key.source);
	RowAccess	rows;
	SyncState	row;
	SyncChannel channel;
	HeapTuple	result;
	bool		is_trusted;

	SPI_connect();
	syncstate_rows_open(&rows);
	syncstate_rows_look(&rows);
	is_trusted = syncstate_rows_lock(&rows, &key, &row) &&
		row.push_until != NO_TIME;
	if (!syncstate_store_lock_leased(&key, lease, &channel))
		lease_is_lost(&key, lease);
	if (channel.state != CHANNEL_RETIRING)
		ereport(ERROR,
				(errcode(ERRCODE_LEASE_LOST),
				 errmsg("push channel is not to be stopped"),
				 errdetail("%s", syncstate_key_detail(&key)),
				 errhint("A claim says with \"action\" what is to be done.")));
	result = syncstate_store_drop_channel(&channel);
	if (is_trusted && !syncstate_store_has_active_channel(&key))
		trust_push(&rows, &row, NO_TIME, false, &policy, syncstate_now());
	syncstate_rows_close(&rows);
	SPI_finish();
	return HeapTupleGetDatum(result);
}

/*
 * Keeps that a channel was heard.  Only the row's own one says that its push
 * works, not one that is to be stopped.  A channel that somebody else has locked
 * is left alone: they may lock its row next, which is locked here.
 */
static void
keep_heard(SyncChannel *channel, int64 message_number)
{
	SyncPolicy	policy = syncstate_policy(channel->key.source);
	RowAccess	rows;
	SyncState	row;

	syncstate_rows_open(&rows);
	syncstate_rows_look(&rows);
	if (syncstate_rows_lock(&rows, &channel->key, &row) &&
		syncstate_store_try_channel(channel))
	{
		TimestampTz now = syncstate_now();

		if (syncstate_channel_hear(channel, message_number, now))
		{
			(void) syncstate_store_write_channel(channel);
			if (channel->state == CHANNEL_ACTIVE && policy.push_renew_before != 0)
				trust_push(&rows, &row, syncstate_channel_trusted(channel, &policy),
						   false, &policy, now);
		}
	}
	syncstate_rows_close(&rows);
}

/*
 * syncstate_receive_push(channel_id, token, message_number) -> boolean: see
 * doc/syncstate.md.
 *
 * Anybody may be calling: nothing is written, locked or told until the token has
 * been found right, and no argument is an error.  Hashes are compared in constant
 * time, so that how long an answer takes says nothing about the token.
 */
Datum
syncstate_receive_push(PG_FUNCTION_ARGS)
{
	int64		message_number = PG_ARGISNULL(2) ? NO_COUNT :
		Max(PG_GETARG_INT64(2), NO_COUNT);
	text	   *channel_id;
	text	   *token;
	bytea	   *hash;
	SyncChannel channel;
	bool		is_known;

	/* A standby may not know a new channel yet, so its "false" would lie. */
	PreventCommandIfReadOnly("receive_push()");

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_BOOL(false);
	channel_id = PG_GETARG_TEXT_PP(0);
	token = PG_GETARG_TEXT_PP(1);
	if (VARSIZE_ANY_EXHDR(channel_id) > MAX_CHANNEL_ID_BYTES ||
		VARSIZE_ANY_EXHDR(token) > MAX_TOKEN_BYTES)
		PG_RETURN_BOOL(false);
	hash = hash_token(token);

	SPI_connect();
	is_known = syncstate_store_channel(channel_id, &channel) &&
		channel.token_hash != NULL &&
		timingsafe_bcmp(VARDATA_ANY(channel.token_hash), VARDATA_ANY(hash),
						PG_SHA256_DIGEST_LENGTH) == 0;
	if (is_known && !syncstate_channel_is_repeat(&channel, message_number) &&
		syncstate_request(&channel.key) != REQUEST_NO_ROW)
	{
		SyncChannel heard = channel;

		if (syncstate_channel_hear(&heard, message_number, syncstate_now()))
			keep_heard(&channel, message_number);
	}
	SPI_finish();
	PG_RETURN_BOOL(is_known);
}
