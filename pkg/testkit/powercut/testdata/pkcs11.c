// A PKCS#11 module in front of another one: it passes the calls on that
// tpm2cloud-ldevid makes, writes down each, and kills its own process at one of
// them. A call that is not passed on ends the process as well: it would go
// uncounted.
//
//	POWERCUT_MODULE  the module behind it
//	POWERCUT_CALLS   a file that gets the name of each call, a line each
//	POWERCUT_AT      "N before" or "N after": the N-th call is the last
//
// Linked with -z nodelete, because a program that closes the module and opens
// it again goes on counting.
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pkcs11go.h"

static CK_FUNCTION_LIST_PTR real;
static int number;

static void fail(const char *what, const char *why)
{
	fprintf(stderr, "powercut: %s: %s\n", what, why ? why : "?");
	abort();
}

static void cut(const char *when)
{
	const char *at = getenv("POWERCUT_AT");
	char here[32];

	snprintf(here, sizeof here, "%d %s", number, when);
	if (at && !strcmp(at, here))
		kill(getpid(), SIGKILL);
}

static void begin(const char *call)
{
	const char *path = getenv("POWERCUT_CALLS");
	int fd;

	number++;
	if (path) {
		fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
		if (fd < 0 || dprintf(fd, "%s\n", call) < 0)
			fail("cannot write down a call", path);
		close(fd);
	}
	cut("before");
}

static CK_RV end(CK_RV rv)
{
	cut("after");
	return rv;
}

#define PASS(name, parameters, arguments)          \
	static CK_RV pass_##name parameters        \
	{                                          \
		begin(#name);                      \
		return end(real->name arguments);  \
	}

PASS(C_Initialize, (CK_VOID_PTR args), (args))
PASS(C_Finalize, (CK_VOID_PTR reserved), (reserved))
PASS(C_GetSlotList, (CK_BBOOL present, CK_SLOT_ID_PTR list, CK_ULONG_PTR count), (present, list, count))
PASS(C_GetTokenInfo, (CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info), (slot, info))
PASS(C_InitToken, (CK_SLOT_ID slot, CK_UTF8CHAR_PTR pin, CK_ULONG size, CK_UTF8CHAR_PTR label), (slot, pin, size, label))
PASS(C_OpenSession, (CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR data, CK_NOTIFY notify, CK_SESSION_HANDLE_PTR session), (slot, flags, data, notify, session))
PASS(C_CloseSession, (CK_SESSION_HANDLE session), (session))
PASS(C_Login, (CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG size), (session, user, pin, size))
PASS(C_Logout, (CK_SESSION_HANDLE session), (session))
PASS(C_FindObjectsInit, (CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR template, CK_ULONG count), (session, template, count))
PASS(C_FindObjects, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE_PTR list, CK_ULONG size, CK_ULONG_PTR count), (session, list, size, count))
PASS(C_FindObjectsFinal, (CK_SESSION_HANDLE session), (session))
PASS(C_GetAttributeValue, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR template, CK_ULONG count), (session, object, template, count))
PASS(C_SignInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key), (session, mechanism, key))
PASS(C_Sign, (CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG size, CK_BYTE_PTR signature, CK_ULONG_PTR length), (session, data, size, signature, length))

// All others, by the list of them.
#define CK_PKCS11_FUNCTION_INFO(name)           \
	static CK_RV refuse_##name(void)        \
	{                                       \
		fail(#name, "is not passed on"); \
		return CKR_GENERAL_ERROR;       \
	}
#include "pkcs11f.h"
#undef CK_PKCS11_FUNCTION_INFO

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR to)
{
	static CK_FUNCTION_LIST list;
	CK_C_GetFunctionList get;
	const char *path = getenv("POWERCUT_MODULE");
	void *module = path ? dlopen(path, RTLD_NOW) : NULL;

	if (!module)
		fail("cannot load the module behind", path ? dlerror() : "POWERCUT_MODULE is not set");
	get = (CK_C_GetFunctionList)dlsym(module, "C_GetFunctionList");
	if (!get || get(&real) != CKR_OK)
		fail("cannot use the module behind", path);
	list.version = real->version;
#define CK_PKCS11_FUNCTION_INFO(name) list.name = (CK_##name)refuse_##name;
#include "pkcs11f.h"
#undef CK_PKCS11_FUNCTION_INFO
	list.C_GetFunctionList = C_GetFunctionList;
	list.C_Initialize = pass_C_Initialize;
	list.C_Finalize = pass_C_Finalize;
	list.C_GetSlotList = pass_C_GetSlotList;
	list.C_GetTokenInfo = pass_C_GetTokenInfo;
	list.C_InitToken = pass_C_InitToken;
	list.C_OpenSession = pass_C_OpenSession;
	list.C_CloseSession = pass_C_CloseSession;
	list.C_Login = pass_C_Login;
	list.C_Logout = pass_C_Logout;
	list.C_FindObjectsInit = pass_C_FindObjectsInit;
	list.C_FindObjects = pass_C_FindObjects;
	list.C_FindObjectsFinal = pass_C_FindObjectsFinal;
	list.C_GetAttributeValue = pass_C_GetAttributeValue;
	list.C_SignInit = pass_C_SignInit;
	list.C_Sign = pass_C_Sign;
	*to = &list;
	return CKR_OK;
}
