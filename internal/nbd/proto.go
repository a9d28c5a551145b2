package nbd

// Magic numbers, options, commands and flags of the protocol.
const (
	serverMagic   = 0x4e42444d41474943 // "NBDMAGIC"
	optionMagic   = 0x49484156454f5054 // "IHAVEOPT"
	replyMagic    = 0x0003e889045565a9 // of an option's reply
	requestMagic  = 0x25609513
	simpleMagic   = 0x67446698
	chunkMagic    = 0x668e33ef
	fixedNewstyle = 1 << 0
	noZeroes      = 1 << 1

	optAbort          = 2
	optGo             = 7
	optStructured     = 8
	optSetMetaContext = 10

	repAck         = 1
	repInfo        = 3
	repMetaContext = 4
	repError       = 1 << 31
	repErrUnknown  = repError | 6

	infoExport    = 0
	infoBlockSize = 3

	flagHasFlags        = 1 << 0
	flagReadOnly        = 1 << 1
	flagSendFlush       = 1 << 2
	flagSendFUA         = 1 << 3
	flagSendTrim        = 1 << 5
	flagSendWriteZeroes = 1 << 6

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
	commandBits    = 8 // of request.kind; above them are the command's flags
	cmdFlagFUA     = 1 << 0

	chunkDone        = 1 << 0
	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkStatus      = 5
	chunkError       = 1<<15 | 1
	chunkErrorOffset = 1<<15 | 2

	stateHole = 1 << 0
	stateZero = 1 << 1

	allocation = "base:allocation"
	maxString  = 4096 // bytes of any name or message (the protocol's limit)
	maxOption  = 3*maxString + 64
	maxExtents = 64 << 10 // in one reply
)
