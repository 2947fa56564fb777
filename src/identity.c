/*
 * identity.c: who is asking
 *
 * The same claim as Supabase's auth.uid() reads, without needing schema auth: the
 * setting of the one claim wins over the setting of all claims, an empty
 * setting counts as none (a transaction-local setting becomes '' and not
 * unset when the transaction ends), a malformed one is an error.  A subject
 * that is no uuid stands for one.
 *
 * Any session that may run SQL may SET these.
 */
#include "postgres.h"

#include <ctype.h>

#include "common/cryptohash.h"
#include "common/sha1.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

/*
 * The namespace of subjects that are not uuids, as in doc/security.md.  Another
 * one would make another user of each of them.
 */
static const unsigned char subject_namespace[UUID_LEN] = {
	0xb4, 0x2c, 0xdf, 0x9f, 0x20, 0xea, 0x48, 0x84,
	0x8d, 0x71, 0x9f, 0x3e, 0xbe, 0x6b, 0xed, 0x2a,
};

/* The claims that were read last, and the user in them. */
static char *known_claims = NULL;
static bool known_is_user;
static pg_uuid_t known_user;

PG_FUNCTION_INFO_V1(syncstate_user_id_of);
PG_FUNCTION_INFO_V1(syncstate_current_user_id);

/* Whether uuid_in() takes a text: 32 digits, hyphens between fours, maybe in braces. */
static bool
is_uuid(const char *text)
{
	bool		in_braces = *text == '{';
	int			digits = 0;

	for (text += in_braces; isxdigit((unsigned char) *text); text++)
	{
		digits++;
		if (text[1] == '-' && digits % 4 == 0 && digits < 2 * UUID_LEN)
			text++;
	}
	if (in_braces && *text++ != '}')
		return false;
	return digits == 2 * UUID_LEN && *text == '\0';
}

/*
 * The uuid of a name in our namespace.
 *
 * Formula: SHA-1 of the namespace and the name in UTF-8, of which 16 bytes are
 * the uuid, but for its version, 5, and variant.  Source: RFC 9562, section 5.5.
 */
static pg_uuid_t
uuid_of_name(const char *name)
{
	char	   *utf8 = pg_server_to_any(name, strlen(name), PG_UTF8);
	pg_cryptohash_ctx *ctx = pg_cryptohash_create(PG_SHA1);
	uint8		digest[SHA1_DIGEST_LENGTH];
	pg_uuid_t	uuid;

	if (pg_cryptohash_init(ctx) < 0 ||
		pg_cryptohash_update(ctx, subject_namespace, UUID_LEN) < 0 ||
		pg_cryptohash_update(ctx, (uint8 *) utf8, strlen(utf8)) < 0 ||
		pg_cryptohash_final(ctx, digest, sizeof(digest)) < 0)
		elog(ERROR, "could not compute %s hash: %s", "SHA1",
			 pg_cryptohash_error(ctx));
	pg_cryptohash_free(ctx);

	memcpy(uuid.data, digest, UUID_LEN);
	uuid.data[6] = (uuid.data[6] & 0x0f) | 0x50;
	uuid.data[8] = (uuid.data[8] & 0x3f) | 0x80;
	return uuid;
}

static pg_uuid_t
user_of_subject(const char *subject)
{
	if (!is_uuid(subject))
		return uuid_of_name(subject);
	return *DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(subject)));
}

static Datum
user_datum(pg_uuid_t user)
{
	pg_uuid_t  *copy = palloc(sizeof(pg_uuid_t));

	*copy = user;
	return UUIDPGetDatum(copy);
}

/* syncstate_user_id_of(subject) -> uuid: see doc/syncstate.md. */
Datum
syncstate_user_id_of(PG_FUNCTION_ARGS)
{
	char	   *subject;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	subject = text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (*subject == '\0')
		PG_RETURN_NULL();
	return user_datum(user_of_subject(subject));
}

/* The value of a setting, or NULL where it is unset or empty. */
static const char *
setting(const char *name)
{
	const char *value = GetConfigOption(name, true, false);

	return (value == NULL || *value == '\0') ? NULL : value;
}

/* Returns the claim "sub" as text, or '' if there is none. */
static const char *
subject_of_claims(const char *claims)
{
	Jsonb	   *json = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
														  CStringGetDatum(claims)));
	JsonbValue *sub = NULL;

	if (JB_ROOT_IS_OBJECT(json))
		sub = getKeyJsonValueFromContainer(&json->root, "sub", strlen("sub"), NULL);
	if (sub == NULL || sub->type == jbvNull)
		return "";
	if (sub->type == jbvString)
		return pnstrdup(sub->val.string.val, sub->val.string.len);
	if (sub->type == jbvNumeric)
		return DatumGetCString(DirectFunctionCall1(numeric_out,
												   NumericGetDatum(sub->val.numeric)));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
			 errmsg("claim \"sub\" must be a string or a number")));
}

/* Reads the user in claims, and keeps it until other claims are read. */
static void
read_claims(const char *claims)
{
	const char *subject = subject_of_claims(claims);
	pg_uuid_t	user = {{0}};
	char	   *copy;

	/* all that may fail comes before anything that is kept is changed */
	if (*subject != '\0')
		user = user_of_subject(subject);
	copy = MemoryContextStrdup(TopMemoryContext, claims);
	if (known_claims != NULL)
		pfree(known_claims);
	known_claims = copy;
	known_user = user;
	known_is_user = *subject != '\0';
}

/* syncstate_current_user_id() -> uuid: see doc/syncstate.md. */
Datum
syncstate_current_user_id(PG_FUNCTION_ARGS)
{
	const char *subject = setting("request.jwt.claim.sub");
	const char *claims;

	if (subject != NULL)
		return user_datum(user_of_subject(subject));
	claims = setting("request.jwt.claims");
	if (claims == NULL)
		PG_RETURN_NULL();

	/* a statement asks more than once */
	if (known_claims == NULL || strcmp(claims, known_claims) != 0)
		read_claims(claims);
	if (!known_is_user)
		PG_RETURN_NULL();
	return user_datum(known_user);
}
